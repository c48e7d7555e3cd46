"""The shapes task's functions, and both tasks through lmms-eval's own command."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest
from datasets import Dataset

from lmms_eval_vreason.paths import tasks_dir
from lmms_eval_vreason.shapes.demo import _RUNS, ABOUT, one_page


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


def test_the_demos_page_holds_the_report_and_every_answer(tmp_path):
    report = tmp_path / "report.html"
    report.write_text("<html><body>\n<h1>Comparison</h1>\n<h2>Scores</h2>\n</body>\n</html>\n")
    samples = {}
    for name in ("base", "strong"):
        samples[name] = tmp_path / f"{name}.html"
        samples[name].write_text(f"<html><body>\n<h1>said by {name}</h1><pre>\\1 </pre>\n</body></html>\n")
    page = one_page(report, samples)
    assert page.count("<body>") == page.count("</body>") == page.count("<h1>") == 1
    order = [page.index(part) for part in ("<h1>", ABOUT, "Scores", "said by base", "said by strong", "</body>")]
    assert order == sorted(order)
    assert "<h3>said by base</h3><pre>\\1 </pre>" in page


@pytest.mark.cli
@pytest.mark.slow
def test_the_demo_runs_all_and_ends_with_the_path_of_its_page(tmp_path):
    """Runs of lmms-eval's command with the base model and under V-Reason, and one page on all."""
    command = [sys.executable, "-m", "lmms_eval_vreason.shapes.demo", "--questions", "4", "--batch-size", "4"]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "LMMS_EVAL_VREASON_CACHE": str(tmp_path / "cache")}
    command += ["--output", str(tmp_path / "demo")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    path = tmp_path / "demo" / "demo.html"
    assert lines[-1] == str(path)
    assert lines[-2] == ABOUT
    page = path.read_text()
    assert ABOUT in page
    assert not re.search(r"(src|href)=[\"'](?!data:)", page), "the page needs no other file"
    assert page.count('src="data:image/png') >= 4 + len(_RUNS)
    for name in _RUNS:
        assert f"One answer: {name}" in page
        assert any(name in line.split() for line in lines)
    assert page.count('nats">&lt;/answer&gt;</span>') == len(_RUNS), "each answer's tokens are coloured"


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
