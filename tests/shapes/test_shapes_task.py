"""The shapes task's functions, and both tasks through lmms-eval's own command."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from datasets import Dataset

from lmms_eval_vreason.paths import tasks_dir
from lmms_eval_vreason.shapes.training.sweep import BASE, SettingResult, describe, paired, settings, table


@pytest.fixture
def utils(tmp_path, monkeypatch):
    monkeypatch.setenv("LMMS_EVAL_VREASON_CACHE", str(tmp_path))
    spec = importlib.util.spec_from_file_location("shapes_utils", tasks_dir() / "shapes" / "utils.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_documents_become_one_user_turn_with_the_clip_first(utils):
    doc = utils.make_documents(Dataset.from_list([{"split": "test", "questions": 2}]))[1]
    (turn,) = utils.doc_to_messages(doc, {"direct": False})
    assert [part["type"] for part in turn["content"]] == ["video", "text"]
    assert turn["content"][0]["url"] == utils.doc_to_visual(doc)[0]
    text = turn["content"][1]["text"]
    assert "<think>" in text
    assert "<answer>" in text
    assert all(f"\n{letter}. {option}" in text for letter, option in zip("ABCD", doc["options"], strict=True))
    assert "<think>" not in utils.doc_to_text(doc, {"direct": True})


@pytest.mark.parametrize(
    ("said", "score"), [("B", 1.0), (" B\n", 1.0), ("A", 0.0), ("B.", 0.0), ("", 0.0), ("<answer>B</answer>", 1.0)]
)
def test_only_the_exact_letter_counts_tagged_or_not(utils, said, score):
    assert utils.process_results({"answer": "B"}, [said]) == {"accuracy": score}


def _answers(method, right):
    return SettingResult(describe(method), len(right), right, [str(hit) for hit in right], 30.0, 0.3, 12.0, 0.02)


def test_the_sweep_pairs_every_setting_with_the_base_model():
    grid = settings([0.01, 0.1], [2, 4])
    assert grid[0] == BASE
    assert len(grid) == 1 + 2 * 4 + 2
    assert paired([1, 1, 0, 1], [1, 0, 0, 0]) == (50.0, pytest.approx(28.8675, abs=1e-3))
    lines = table([_answers(grid[0], [1, 0, 0, 0]), _answers(grid[1], [1, 1, 0, 1])]).splitlines()
    assert "25.0 ± 25.0" in lines[2]
    assert "+50.0 ± 28.9" in lines[3]
    assert "50.0%" in lines[3]
    assert [cell.strip() for cell in lines[3].split("|")[-3:-1]] == ["12.0", "0.020"]


@pytest.mark.cli
@pytest.mark.slow
def test_the_demo_runs_both_and_ends_with_the_path_of_its_report(tmp_path):
    """Two runs of lmms-eval's command, base and V-Reason, and the report on both."""
    command = [sys.executable, "-m", "lmms_eval_vreason.shapes.demo", "--questions", "4", "--batch-size", "4"]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "LMMS_EVAL_VREASON_CACHE": str(tmp_path / "cache")}
    command += ["--output", str(tmp_path / "demo")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    page = tmp_path / "demo" / "report.html"
    assert lines[-1] == str(page)
    assert "V-Reason" in page.read_text() or "vreason" in page.read_text()
    scores = [line for line in lines if line.split()[:1] in (["shapes"], ["vreason"])]
    assert any("base" in line for line in scores)
    assert any("vreason" in line for line in scores)


@pytest.mark.cli
def test_both_tasks_run_offline_through_the_command(tmp_path):
    command = [sys.executable, "-m", "lmms_eval", "--model", "qwen2_5_vl_vreason", "--batch_size", "4"]
    command += ["--model_args", "pretrained=shapes,device=cpu", "--limit", "4"]
    command += ["--tasks", "shapes,shapes_direct", "--include_path", str(tasks_dir()), "--log_samples"]
    command += ["--output_path", str(tmp_path / "out")]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "LMMS_EVAL_VREASON_CACHE": str(tmp_path / "cache"),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for task in ("shapes", "shapes_direct"):
        (samples,) = (tmp_path / "out").rglob(f"*_samples_{task}.jsonl")
        rows = [json.loads(line) for line in samples.read_text().splitlines()]
        assert len(rows) == 4, done.stderr[-2000:]
        assert {row["accuracy"] for row in rows} <= {0.0, 1.0}
        assert all(row["filtered_resps"][0].strip() in set("ABCD") for row in rows)
