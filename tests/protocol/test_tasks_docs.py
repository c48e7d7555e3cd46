"""The commands of docs/reproduce.md: every model argument parses, every task and label exists, the means are right."""

import re
from pathlib import Path
from statistics import fmean

import pytest
import yaml

from lmms_eval_vreason.adapter.options import parse_options
from lmms_eval_vreason.paths import tasks_dir

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "reproduce.md").read_text(encoding="utf-8")
VARIABLES = dict(re.findall(r'^([A-Z]+)="?([^"\n$]+)"?$', TEXT, re.MULTILINE))
ROWS = re.findall(r'^run ([\w-]+) +"([^"]+)"(?: (\w+))?$', TEXT, re.MULTILINE)


def arguments(text: str) -> dict[str, str]:
    text = re.sub(r"\$([A-Z]+)", lambda found: VARIABLES[found[1]], text)
    return dict(part.split("=", 1) for part in text.split(","))


def names() -> set[str]:
    files = [yaml.load(path.read_text(), Loader=yaml.BaseLoader) for path in tasks_dir().rglob("*.yaml")]
    return {file.get("group") or file.get("task") for file in files if isinstance(file, dict) and "task" in file}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_row(row: tuple[str, str, str]) -> None:
    _, given, group = row
    options = parse_options(arguments(f"{given},$VIDEO"))
    assert (group or "vreason") in names()
    assert options.video.max_num_frames == 16
    assert options.thinking.thinking is not (group == "vreason_direct")
    budget = options.thinking.max_thinking_tokens + options.thinking.max_answer_tokens
    assert group == "vreason_direct" or 1000 <= budget < 1024


def test_the_rows_are_the_papers_and_the_controls() -> None:
    methods = {name: parse_options(arguments(given)).method for name, given, _ in ROWS}
    assert {name: methods[name].policy for name in ("base-cot", "vreason", "minimize", "maximize", "random")} == {
        "base-cot": "off",
        "vreason": "switch",
        "minimize": "minimize",
        "maximize": "maximize",
        "random": "random",
    }
    assert methods["lite"].prune_ratio == 0.5
    assert not methods["video-r1"].steers
    assert methods["video-r1-vreason"].steers


def test_report_takes_the_rows_that_are_run() -> None:
    labels = re.findall(r"\b([\w-]+)=runs/([\w-]+)", TEXT)
    assert labels
    assert all(label == folder for label, folder in labels)
    assert {label for label, _ in labels} == {name for name, _, _ in ROWS[:9]}


def test_published_means() -> None:
    rows = re.findall(r"^\|[^|]*\| published \| (.+) \|$", TEXT, re.MULTILINE)
    assert len(rows) == 4
    for row in rows:
        *columns, mean, without_mra = map(float, row.split(" | "))
        assert mean == pytest.approx(fmean(columns), abs=0.051)
        assert without_mra == pytest.approx(fmean(columns[:6]), abs=0.051)


def test_tasks_named_in_the_protocol_exist() -> None:
    text = (DOCS / "tasks.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(vreason_\w+)`", text)) | set(re.findall(r"--tasks (vreason\w*)", text))
    for prefix, parts in re.findall(r"`(vreason_\w+_)\{([\w,]+)\}`", text):
        named |= {prefix + part for part in parts.split(",")}
    assert {"vreason_videomme", "vreason_video_mmmu_adaptation", "vreason_without_mra"} <= named
    assert named <= names()
