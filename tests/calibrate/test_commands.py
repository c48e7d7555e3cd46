"""``vreason calibrate`` as a user types it."""

import json
import subprocess
import sys

import pandas as pd
import pytest
import yaml

from lmms_eval_vreason.adapter import loading
from lmms_eval_vreason.calibrate.settings import GRID
from lmms_eval_vreason.cli import main

ARGUMENTS = "pretrained=shapes,device=cpu"


def calibrate(tmp_path, **options):
    words = {"model_args": ARGUMENTS, "tasks": "shapes", "output": tmp_path / "out", **options}
    return main(["calibrate", *(word for name, value in words.items() for word in (f"--{name}", str(value)))])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "--limit 0 must be at least 1"),
        ({"batch_size": -1}, "--batch_size -1"),
        ({"max_new_tokens": 0}, "--max_new_tokens 0"),
        ({"model_args": "pretrained=shapes,lerning_rate=1"}, "did you mean learning_rate"),
        ({"model_args": "pretrained"}, "--model_args"),
        ({"settings": "nowhere.yaml"}, "nowhere.yaml"),
        ({"tasks": "shapes,no_such_task"}, "--tasks no_such_task"),
    ],
)
def test_a_mistake_is_one_line_before_the_model_loads(tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.setattr(loading, "load_model", lambda *_: pytest.fail("loaded"))
    assert calibrate(tmp_path, **options) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("vreason: ")
    assert message in error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- strong", "write a line a setting"),
        ("", "write a line a setting"),
        ("mine: [", "is not YAML"),
        ("mine: {fps: 2}", "mine has 'fps', which is not one of preset"),
        ("mine: {policy: up}", "policy='up' is not one of"),
    ],
)
def test_settings_are_checked(tmp_path, capsys, text, message):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    assert calibrate(tmp_path, settings=path) == 2
    assert message in capsys.readouterr().err


def test_the_whole_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("LMMS_EVAL_VREASON_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "settings.yaml"
    settings = {"mine": {"preset": "strong", "policy": "minimize", "min_entropy": 1e-4}, "none": {"learning_rate": 0}}
    path.write_text(yaml.safe_dump(settings))
    options = {"settings": path, "limit": 3, "batch_size": 2, "max_new_tokens": 24}
    assert calibrate(tmp_path, **options) == 0
    printed = capsys.readouterr().out
    rows = pd.read_csv(tmp_path / "out" / "table.csv", index_col="setting")
    assert list(rows.index) == ["mine", "none"]
    assert rows.loc["mine", "all"] < 0
    assert rows.loc["none", ["all", "KL", "choices", "shift"]].abs().max() < 1e-6
    assert (tmp_path / "out" / "entropy.png").stat().st_size > 10_000
    assert "mine" in printed
    assert "The rule" in printed
    assert len((tmp_path / "out" / "replays.jsonl").read_text().splitlines()) == 4


@pytest.mark.cli
def test_stock_tasks_are_calibrated_on_with_the_run_s_own_budgets(offline, tiny_checkpoint, tmp_path):
    small = "device=cpu,max_pixels=200704,max_num_frames=4,max_thinking_tokens=8,max_answer_tokens=4"
    words = ["--model_args", f"pretrained={tiny_checkpoint},{small}", "--tasks", "videomme,mvbench_moving_direction"]
    command = [sys.executable, "-m", "lmms_eval_vreason.cli", "calibrate", *words, "--limit", "2"]
    run = subprocess.run([*command, "--output", str(tmp_path)], env=offline.env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    lines = [json.loads(text) for text in (tmp_path / "replays.jsonl").read_text().splitlines()]
    assert len(lines) == len(GRID)
    for line in lines:
        assert [len(entropy) > 8 for entropy in line["entropy"]] == [True] * 4
    assert all(name in run.stdout for name in GRID)
