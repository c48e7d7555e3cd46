"""The journal: whole lines, half lines, newest lines, and folders that cannot be written."""

import json

import pytest

from lmms_eval_vreason.journal.files import (
    Journal,
    JournalError,
    digest,
    file_identity,
    journal_files,
    latest_samples,
    read_lines,
    read_records,
)

RUN = {"run": digest("settings")}


def sample(key, **more):
    return {"key": key, "task": "videomme", "doc_id": 0, "answer": "B", "error": None, **more}


def test_what_is_added_is_read_back_and_found_by_the_next_run(tmp_path):
    journal = Journal(tmp_path, RUN)
    journal.add(sample("a"))
    journal.add(sample("b", error={"type": "MediaError", "message": "gone"}))
    kinds = [record["kind"] for record in read_records(tmp_path)]
    assert kinds == ["run", "sample", "sample"]
    # Read while the writer still has it open: each line is flushed as it is written.
    assert set(Journal(tmp_path, RUN, rank=1).finished) == {"a"}
    assert Journal(tmp_path, RUN, resume=False).finished == {}


def test_a_half_written_last_line_is_dropped_and_the_file_goes_on_whole(tmp_path):
    journal = Journal(tmp_path, RUN)
    journal.add(sample("a"))
    journal.close()
    with journal.path.open("a") as file:
        file.write('{"kind": "sample", "key": "b", "ans')
    assert [line.problem for line in read_lines(journal.path)] == ["", ""]
    again = Journal(tmp_path, RUN)
    again.add(sample("c"))
    assert set(again.finished) == {"a"}
    assert set(latest_samples(read_records(tmp_path))) == {"a", "c"}
    assert not [line.problem for line in read_lines(journal.path) if line.problem]


def test_a_broken_line_in_the_middle_is_reported_with_its_place(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"kind": "run"}\nnot json\n[1]\n{"kind": "sample", "key": "a"}\n')
    problems = {line.number: line.problem for line in read_lines(path) if line.problem}
    assert set(problems) == {2, 3}
    assert "is not JSON" in problems[2]
    assert [record["kind"] for record in read_records(path)] == ["run", "sample"]


def test_a_later_line_with_the_same_key_replaces_an_earlier_one(tmp_path):
    journal = Journal(tmp_path, RUN)
    journal.add(sample("a", answer="A"))
    journal.add(sample("a", answer="B"))
    assert latest_samples(read_records(tmp_path))["a"]["answer"] == "B"


def test_numbers_that_json_has_no_word_for_are_refused(tmp_path):
    journal = Journal(tmp_path, RUN)
    with pytest.raises(ValueError, match="not JSON compliant"):
        journal.add(sample("a", seconds=float("nan")))


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="the journal cannot be written"):
        Journal(tmp_path / "file" / "journal", RUN)
    with pytest.raises(JournalError, match="no such journal"):
        journal_files(tmp_path / "nowhere")


def test_a_file_is_another_one_when_it_changes(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_text("one")
    before = file_identity(str(path))
    path.write_text("other")
    assert file_identity(str(path)) != before
    assert file_identity(str(tmp_path / "gone.mp4"))[1:] == [None, None]


def test_equal_settings_have_equal_digests():
    assert digest({"a": 1, "b": [2.0, None]}) == digest(json.loads('{"b": [2.0, null], "a": 1}'))
    assert digest({"a": 1}) != digest({"a": 2})
