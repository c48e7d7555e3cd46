"""docs/journal.md has every field that a run writes, and no other."""

import json
import re
from pathlib import Path

import pytest
from instances import instances
from offline import write_video

from lmms_eval_vreason.journal.files import traces_path

PAGE = Path(__file__).parents[2] / "docs" / "journal.md"


def documented(words):
    """The names in the first column of the table after ``words``."""
    table = PAGE.read_text().split(words, 1)[1].split("| --- | --- |\n", 1)[1].split("\n\n", 1)[0]
    return {name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])}


@pytest.fixture
def lines(load, tmp_path):
    video = str(write_video(tmp_path / "a.mp4"))
    model = load(min_pixels=784, max_pixels=56 * 56, max_num_frames=4, max_thinking_tokens=4, max_answer_tokens=2)
    docs = [{"video": path, "text": "what moves?"} for path in (video, f"{video}-missing.mp4")]
    model.generate_until(instances(model, docs, {"do_sample": False}))
    path = model._journal.path
    return [json.loads(line) for file in (path, traces_path(path)) for line in file.read_text().splitlines()]


def test_every_field_is_documented(lines):
    run, model = (next(line for line in lines if line.get("kind") == kind) for kind in ("run", "model"))
    answered, failed = sorted((line for line in lines if line.get("kind") == "sample"), key=lambda r: r["doc_id"])
    (trace,) = (line for line in lines if "kind" not in line)
    assert set(run) == documented("## Fields of a line of kind `run`")
    assert set(model) == documented("## Fields of a line of kind `model`")
    assert set(answered) == set(failed) == documented("## Fields of a line of kind `sample`")
    assert set(answered["trace"]) == documented("`trace` in it:")
    assert set(trace) == documented("## Fields of a line of traces")
    seconds = PAGE.read_text().split("| `seconds` |", 1)[1].splitlines()[0]
    assert all(f"`{name}`" in seconds for name in answered["seconds"])
    media = PAGE.read_text().split("| `shown` |", 1)[1].splitlines()[0]
    assert all(f"`{name}`" in media for name in answered["shown"][0])
    assert failed["trace"] is None
    assert failed["shown"] == []
    assert answered["trace"]["updates"] > 0
