"""The journal: whole lines, half lines, newest lines, and folders that cannot be written."""

import json
import re
import subprocess
import sys

import pandas as pd
import pytest

from lmms_eval_vreason.journal.files import (
    JournalError,
    digest,
    file_identity,
    journal_files,
    latest_samples,
    read_lines,
    read_records,
    traces_path,
    with_trace,
)
from lmms_eval_vreason.journal.writer import Journal

RUN = {"run": digest("settings")}


def sample(key, **more):
    return {"key": key, "task": "videomme", "doc_id": 0, "answer": "B", "trace": None, "error": None, **more}


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
    assert [line.record["kind"] for line in read_lines(journal.path)] == ["run", "sample"]
    again = Journal(tmp_path, RUN)
    again.add(sample("c"))
    assert set(again.finished) == {"a"}
    assert set(latest_samples(read_records(tmp_path))) == {"a", "c"}
    assert all(line.record for line in read_lines(journal.path))


def test_a_broken_line_in_the_middle_is_reported_with_its_place(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"kind": "run"}\nnot json\n[1]\n{"key": "a"}\n{"kind": "sample", "key": "a"}\n')
    whole = {line.number: line.record is not None for line in read_lines(path)}
    assert whole == {1: True, 2: False, 3: False, 4: False, 5: True}
    assert [record["kind"] for record in read_records(path)] == ["run", "sample"]


def test_a_later_line_with_the_same_key_replaces_an_earlier_one(tmp_path):
    journal = Journal(tmp_path, RUN)
    journal.add(sample("a", answer="A"))
    journal.add(sample("a", answer="B"))
    assert latest_samples(read_records(tmp_path))["a"]["answer"] == "B"
    assert latest_samples([{"kind": "run", "key": "a"}, {"kind": "sample"}]) == {}


@pytest.mark.parametrize("first", ["answered", "failed"])
def test_a_failure_does_not_count_over_an_answer_whichever_file_is_read_first(first):
    lines = [sample("a", answer="B", error=None), sample("a", answer="", error={"type": "X", "message": ""})]
    read = [{"kind": "sample", **line} for line in (lines if first == "answered" else reversed(lines))]
    assert latest_samples(read)["a"]["answer"] == "B"


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
    (tmp_path / "empty").mkdir()
    with pytest.raises(JournalError, match=r"empty: holds no journal .*: give the folder that a run wrote"):
        journal_files(tmp_path / "empty")


def test_a_file_is_another_one_when_it_changes(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_text("one")
    before = file_identity(str(path))
    path.write_text("other")
    assert file_identity(str(path)) != before
    assert file_identity(str(tmp_path / "gone.mp4"))[1:] == [None, None]


def test_a_folder_that_holds_the_journal_s_folder_is_a_mistake(tmp_path):
    (tmp_path / "vreason_journal").mkdir()
    inside = re.escape(str(tmp_path / "vreason_journal"))
    with pytest.raises(JournalError, match=rf"holds no journal \(no \.jsonl file\): give {inside}$"):
        journal_files(tmp_path)


def test_pandas_reads_it(tmp_path):
    """As docs/journal.md says, in place of a command of our own."""
    journal = Journal(tmp_path, RUN)
    journal.add(sample("a", thinking="a [red] one,\nthen <b>two</b>"))
    journal.add(sample("b", thinking="", error={"type": "MediaError", "message": "1.mp4: there is no such file"}))
    journal.add(sample("b", thinking="now"))
    frame = pd.read_json(journal.path, lines=True).query("kind == 'sample'").drop_duplicates("key", keep="last")
    assert frame["thinking"].tolist() == ["a [red] one,\nthen <b>two</b>", "now"]


def test_equal_settings_have_equal_digests():
    assert digest({"a": 1, "b": [2.0, None]}) == digest(json.loads('{"b": [2.0, null], "a": 1}'))
    assert digest({"a": 1}) != digest({"a": 2})
    assert digest({"a": range(3)}) == digest({"a": "range(0, 3)"})  # What JSON has no word for is known by its text.


TRACE = {"tokens": ["a", "b"], "entropy": [1.5, None]}


def test_a_trace_lies_in_a_file_of_its_own_and_is_put_back_on_demand(tmp_path):
    journal = Journal(tmp_path, RUN)
    for key in ("a", "b"):
        journal.add(sample(key, trace={"updates": 2}), {**TRACE, "tokens": [key]})
    assert "entropy" not in journal.path.read_text()
    assert journal_files(tmp_path) == [journal.path]
    assert {path.name for path in tmp_path.glob("*.jsonl")} == {
        journal.path.name,
        journal.path.name.replace(".jsonl", ".traces.jsonl"),
    }
    plain, whole = (latest_samples(read_records(tmp_path, **flag)) for flag in ({}, {"traces": True}))
    assert "tokens" not in plain["b"]["trace"]
    assert {key: record["trace"]["tokens"] for key, record in whole.items()} == {"a": ["a"], "b": ["b"]}
    assert whole["a"]["trace"]["entropy"] == [1.5, None]
    assert whole["a"]["trace"]["updates"] == 2
    # A trace of another sample, at a place that was edited, is not taken for this one's.
    stolen = {**plain["a"], "key": "c"}
    assert with_trace(journal.path, stolen) == stolen
    traces_path(journal.path).write_text(json.dumps(TRACE))
    nobodys = {**plain["a"], "trace": {"place": [0, len(json.dumps(TRACE))]}}
    assert with_trace(journal.path, nobodys) == nobodys


def test_a_trace_whose_file_is_gone_is_lost(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"kind": "sample", "key": "a", "trace": {"place": [0, 1]}}\n{"kind": "sample", "key": "b"}\n')
    assert [line.lost_trace for line in read_lines(path)] == [True, False]


@pytest.mark.parametrize("lost", ["the sample's line", "half the sample's line", "half the trace", "the trace"])
def test_a_sample_is_finished_only_when_both_of_its_lines_are_there(tmp_path, lost):
    """What a kill, or a machine that goes down, leaves of the last sample."""
    journal = Journal(tmp_path, RUN)
    journal.add(sample("a", trace={"updates": 1}), TRACE)
    before = journal.path.stat().st_size, traces_path(journal.path).stat().st_size
    journal.add(sample("b", trace={"updates": 1}), TRACE)
    journal.close()
    cut = {"the sample's line": (0, None), "half the sample's line": (9, None), "half the trace": (None, 9)}
    for path, whole, kept in zip(
        (journal.path, traces_path(journal.path)), before, cut.get(lost, (None, 0)), strict=True
    ):
        if kept is not None:
            path.write_bytes(path.read_bytes()[: whole + kept])
    again = Journal(tmp_path, RUN)
    assert set(again.finished) == {"a"}
    again.add(sample("b", answer="C", trace={"updates": 1}), {**TRACE, "tokens": ["again"]})
    again.close()
    whole = latest_samples(read_records(tmp_path, traces=True))
    assert (whole["a"]["trace"]["tokens"], whole["b"]["trace"]["tokens"]) == (["a", "b"], ["again"])
    assert set(Journal(tmp_path, RUN).finished) == {"a", "b"}


def test_a_journal_of_another_version_is_refused(tmp_path):
    (tmp_path / "old-rank0.jsonl").write_text('{"kind": "run", "version": 1, "run": "ab"}\n')
    for read in (lambda: list(read_records(tmp_path)), lambda: Journal(tmp_path, RUN)):
        with pytest.raises(JournalError, match=r"old-rank0\.jsonl: is a journal of version 1, .* version 2\. Move"):
            read()


def test_a_second_run_at_once_is_refused_and_a_dead_one_is_not_in_the_way(tmp_path):
    code = (
        "import sys; from pathlib import Path; from lmms_eval_vreason.journal.writer import Journal\n"
        f"journal = Journal(Path(sys.argv[1]), {RUN!r}); print('open', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "open\n"
        with pytest.raises(JournalError, match=rf"another run .* \(process {other.pid} on .*\).*folder of its own"):
            Journal(tmp_path, RUN)
        Journal(tmp_path, RUN, rank=1)
        Journal(tmp_path, {"run": digest("other settings")})
        other.kill()
    Journal(tmp_path, RUN)


def test_why_a_known_sample_is_not_answered_by_the_journal(tmp_path):
    who = {"task": "videomme", "split": "test", "doc_id": 0, "repeat": 0}
    settings = {"dtype": "float32", "method": {"learning_rate": 0.01, "policy": "switch"}}
    journal = Journal(tmp_path, {"run": digest(settings), "settings": settings})
    journal.add(sample("a", **who))
    journal.add(sample("b", **{**who, "doc_id": 1}, error={"type": "MediaError", "message": "gone"}))
    same = Journal(tmp_path, {"run": digest(settings), "settings": settings})
    assert same.why_not("b", {**who, "doc_id": 1}) == "failed before"
    assert "another prompt, media file or generation setting" in same.why_not("c", who)
    assert same.why_not("d", {**who, "doc_id": 2}) == ""
    settings = {"dtype": "float32", "method": {"learning_rate": 0.5, "policy": "switch"}}
    other = Journal(tmp_path, {"run": digest(settings), "settings": settings})
    assert other.why_not("e", who) == "were made with other settings: learning_rate=0.01"
