"""``vreason tasks`` and ``vreason journal``."""

import pandas as pd
import pytest

from lmms_eval_vreason.cli import main
from lmms_eval_vreason.journal.files import traces_path
from lmms_eval_vreason.journal.writer import Journal

SAMPLE = {
    "task": "videomme",
    "split": "test",
    "repeat": 0,
    "thinking": "a [red] one,\nthen <b>two</b>",
    "answer": "B",
    "thinking_cut": False,
    "answer_cut": False,
    "tokens": {"input": 9, "output": 5, "thinking": 3},
}


@pytest.fixture
def journal(tmp_path):
    header = {
        "run": "ab" * 32,
        "started": "2026-01-01T00:00:00+00:00",
        "checkpoint": "tiny",
        "method": {"policy": "off"},
    }
    journal = Journal(tmp_path / "journal", header)
    for doc, error in ((0, None), (1, {"type": "MediaError", "message": "1.mp4: there is no such file"})):
        journal.add(
            {**SAMPLE, "key": str(doc), "doc_id": doc, "trace": None if error else {"updates": 2}, "error": error},
            None if error else {"tokens": ["a", "B"], "entropy": [1.5, 0.25]},
        )
    return journal


def test_tasks_is_a_folder_with_our_groups(capsys):
    assert main(["tasks"]) == 0
    from pathlib import Path

    folder = Path(capsys.readouterr().out.strip())
    assert (folder / "vreason").is_dir()
    assert (folder / "shapes").is_dir()


def test_check_finds_broken_lines(journal, capsys):
    assert main(["journal", "check", str(journal.folder)]) == 0
    assert "2 samples, 1 starts" in capsys.readouterr().out
    with journal.path.open("a") as file:
        file.write("no json\n")
    assert main(["journal", "check", str(journal.folder)]) == 1
    assert f"{journal.path.name}:4: is not JSON" in capsys.readouterr().out


def test_a_sample_that_was_answered_again_counts_once(journal, capsys):
    journal.add({**SAMPLE, "key": "1", "doc_id": 1, "trace": {"updates": 3}, "error": None}, {"tokens": ["B"]})
    assert main(["journal", "check", str(journal.folder)]) == 0
    assert "2 samples (1 more were replaced), 1 starts" in capsys.readouterr().out


def test_check_finds_lost_traces(journal, capsys):
    traces_path(journal.path).write_bytes(b"")
    assert main(["journal", "check", str(journal.folder)]) == 1
    assert "1 samples have no trace" in capsys.readouterr().out


def test_a_folder_without_a_journal_is_a_mistake(tmp_path, capsys):
    (tmp_path / "vreason_journal").mkdir()
    assert main(["journal", "check", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"holds no journal (no .jsonl file): give {tmp_path / 'vreason_journal'}" in line


def test_pandas_exports_it(journal):
    """As docs/journal.md says, in place of a command of our own."""
    frame = pd.read_json(journal.path, lines=True).query("kind == 'sample'").drop_duplicates("key", keep="last")
    assert frame["thinking"].tolist() == ["a [red] one,\nthen <b>two</b>"] * 2
    assert frame["error"].dropna().str["message"].tolist() == ["1.mp4: there is no such file"]


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, capsys):
    assert main(["journal", "check", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
