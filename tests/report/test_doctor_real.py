"""The doctor on what the real command writes: clean runs of both classes, and spoiled ones."""

import json
import shutil

import pytest
from offline import run_lmms_eval, scripted_checkpoint, write_video

from lmms_eval_vreason.cli import main
from lmms_eval_vreason.paths import tasks_dir
from lmms_eval_vreason.report.doctor.examine import examine

pytestmark = pytest.mark.cli

QUESTIONS = 24


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A folder for ``--include_path`` with a small shapes task."""
    folder = tmp_path_factory.mktemp("tasks") / "shapes"
    shutil.copytree(tasks_dir() / "shapes", folder)
    (folder / "splits.json").write_text(json.dumps({"split": "test", "questions": QUESTIONS}))
    return folder.parent


@pytest.fixture(scope="module")
def scripted(tmp_path_factory):
    """A checkpoint that always answers B."""
    return scripted_checkpoint(tmp_path_factory.mktemp("scripted"), "B")


def on_shapes(offline, shapes, output, **arguments):
    given = {"pretrained": "shapes", "device": "cpu", **arguments}
    extra = ("--include_path", str(shapes))
    run_lmms_eval(
        offline.env, model="qwen2_5_vl_vreason", model_args=given, tasks=["shapes"], output=output, extra=extra
    )
    return examine(str(output))


def test_a_clean_run_of_ours_and_one_on_other_positions(offline, shapes, tmp_path):
    clean = on_shapes(offline, shapes, tmp_path / "clean")
    assert clean.findings == []
    assert clean.unknown == []
    assert f"{QUESTIONS} of {QUESTIONS} samples steered" in clean.facts["method"]
    assert "dtype float32, attn_implementation sdpa" in clean.facts["precision"]
    assert f"({QUESTIONS} times)" in clean.facts["frames shown"]
    spoiled = on_shapes(offline, shapes, tmp_path / "spoiled", positions="transformers")
    assert spoiled.findings[0].name == "positions"
    assert "positions=transformers on transformers" in spoiled.findings[0].evidence[0]


def test_a_stock_run_is_clean_but_for_the_positions_of_its_transformers(offline, scripted, tmp_path, capsys):
    given = {"pretrained": scripted, "device": "cpu", "device_map": "cpu"}
    run_lmms_eval(offline.env, model="qwen2_5_vl", model_args=given, tasks=["lvbench"], output=tmp_path)
    assert [finding.name for finding in examine(str(tmp_path)).findings] == ["positions"]
    assert main(["doctor", str(tmp_path), "--transformers", "4.57.1"]) == 0
    page = capsys.readouterr().out
    assert "nothing found" in page
    for unknown in ("frames shown", "versions", "precision", "device"):
        assert unknown in page.split("does not record: ")[1]


def test_broken_and_short_videos(offline, scripted, tmp_path):
    given = {"pretrained": scripted, "device": "cpu", "policy": "off", "thinking": "off", "max_error_rate": 1}
    videos = sorted({path.resolve() for path in offline.home.glob("**/*.mp4") if "lvbench" in str(path)})
    kept = {path: path.read_bytes() for path in videos}
    assert len(videos) > 1
    try:
        videos[0].write_bytes(b"no video")
        write_video(videos[1], frames=2)
        run_lmms_eval(offline.env, model="qwen2_5_vl_vreason", model_args=given, tasks=["lvbench"], output=tmp_path)
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
    first, second = examine(str(tmp_path)).findings
    assert (first.name, second.name) == ("failed", "few frames")
    assert "MediaError" in first.evidence[0]
    assert second.evidence[0].startswith("2 of 2 frames")


def test_a_subset_of_a_benchmark_with_cut_answers(offline, tiny_checkpoint, tmp_path):
    given = {"pretrained": tiny_checkpoint, "device": "cpu", "max_thinking_tokens": 4, "max_answer_tokens": 4}
    extra = ("--limit", "2", "--gen_kwargs", "temperature=0.5,do_sample=True")
    run_lmms_eval(
        offline.env, model="qwen2_5_vl_vreason", model_args=given, tasks=["videomme"], output=tmp_path, extra=extra
    )
    found = {finding.name: finding for finding in examine(str(tmp_path)).findings}
    assert {"cut", "limit", "size", "generation"} <= set(found)
    assert found["limit"].what == "Only some of the documents were asked: 2 of 4."
    assert found["size"].evidence == ["videomme: 4 of 2700"]
    assert found["generation"].evidence == ["temperature=0.5", "do_sample=True"]


def test_two_processes_and_a_resumed_run_are_clean(offline, scripted, tmp_path):
    given = {"pretrained": scripted, "device": "cpu", "policy": "off", "thinking": "off"}
    same = {"model": "qwen2_5_vl_vreason", "model_args": given, "tasks": ["lvbench"], "output": tmp_path}
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    run_lmms_eval({**offline.env, "ACCELERATE_USE_CPU": "true"}, launcher=launcher, **same)
    assert examine(str(tmp_path)).findings == []
    assert len(list((tmp_path / "vreason_journal").glob("*-rank?.jsonl"))) == 2
    resumed = run_lmms_eval(offline.env, **same)
    assert "4 of 4 answers taken from the journal" in resumed.log
    diagnosis = examine(str(tmp_path))
    assert diagnosis.findings == []
    assert "of 4 samples" not in diagnosis.facts["method"]
    assert "4 samples" in diagnosis.facts["method"]
