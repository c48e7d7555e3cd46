"""``vreason tasks`` and ``vreason journal``."""

import csv
import io
import json

import pytest

from lmms_eval_vreason.cli import main
from lmms_eval_vreason.journal.files import Journal


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
            {
                "key": str(doc),
                "task": "videomme",
                "split": "test",
                "doc_id": doc,
                "repeat": 0,
                "thinking": "a [red] one,\nthen <b>two</b>",
                "answer": "B",
                "thinking_cut": False,
                "answer_cut": False,
                "tokens": {"input": 9, "output": 5, "thinking": 3},
                "trace": {"updates": 2} if error is None else None,
                "error": error,
            }
        )
    return journal


def test_tasks_is_a_folder_with_our_groups(capsys):
    assert main(["tasks"]) == 0
    from pathlib import Path

    folder = Path(capsys.readouterr().out.strip())
    assert (folder / "vreason").is_dir()
    assert (folder / "shapes").is_dir()


def test_show_counts_samples_and_names_errors(journal, capsys):
    assert main(["journal", "show", str(journal.folder), "--samples", "1"]) == 0
    out = capsys.readouterr().out
    assert "1 failed: 1.mp4: there is no such file" in out
    assert "a [red] one" in out


def test_check_finds_broken_lines(journal, capsys):
    assert main(["journal", "check", str(journal.folder)]) == 0
    assert "2 samples, 1 starts" in capsys.readouterr().out
    with journal.path.open("a") as file:
        file.write("no json\n")
    assert main(["journal", "check", str(journal.folder)]) == 1
    assert f"{journal.path.name}:4: is not JSON" in capsys.readouterr().out


def test_export_keeps_every_character(journal, capsys):
    assert main(["journal", "export", str(journal.folder)]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["thinking"] for row in rows] == ["a [red] one,\nthen <b>two</b>"] * 2
    assert rows[1]["error"] == "1.mp4: there is no such file"
    assert main(["journal", "export", str(journal.folder), "--format", "jsonl"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["output_tokens"] == 5


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, capsys):
    assert main(["journal", "show", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
