"""``vreason bench --end-to-end``: its fixture, its stopwatches, its figures, and one whole run."""

import json
import subprocess
import sys
import time
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import av
import decord
import pytest
import torch
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from lmms_eval_vreason.bench import end_to_end
from lmms_eval_vreason.bench.command_runs import PARTS, Measurement, Row, Setup, command, read_measurement
from lmms_eval_vreason.bench.end_to_end import _chosen_rows, all_rows
from lmms_eval_vreason.bench.end_to_end_tables import OFF, STOCK, show, summary
from lmms_eval_vreason.bench.fixture import Fixture
from lmms_eval_vreason.bench.probe import Stopwatches, peak_resident_bytes
from lmms_eval_vreason.bench.sizes import SHAPES
from lmms_eval_vreason.cli import main
from lmms_eval_vreason.journal.writer import Journal

STOCK_ROW = Row(STOCK, "qwen2_5_vl", "", 1, "bfloat16")
OFF_ROW = Row(OFF, "qwen2_5_vl_vreason", "", 4, "bfloat16")
STEERED_ROW = Row("ours, V-Reason", "qwen2_5_vl_vreason", "", 4, "bfloat16")


@pytest.fixture(scope="module")
def fixture(tmp_path_factory) -> Fixture:
    folder = tmp_path_factory.mktemp("fixture")
    shape = SHAPES["narrow"].cut(2)
    return Fixture(folder, videos=2, questions=5, asked_tokens=70).write(shape, "cpu")


def test_the_fixture_has_its_questions_and_video_tokens(fixture):
    documents = [json.loads(line) for line in (fixture.task / "documents.json").read_text().splitlines()]
    assert fixture.samples == len(documents) == 10
    assert [document["video"] for document in documents] == [str(fixture.folder / f"{n // 5}.mp4") for n in range(10)]
    assert len({document["prompt"] for document in documents}) > 5
    for document in documents:
        assert f"\n{document['answer']}. " in document["prompt"]
    with av.open(documents[0]["video"]) as video:
        frames = list(video.decode(video=0))
    assert len(frames) == 16 * 8
    assert frames[0].width == frames[0].height >= fixture.side
    assert not (frames[0].to_ndarray() == frames[-1].to_ndarray()).all()
    assert (fixture.side, fixture.video_tokens) == (56, 64)


def test_the_same_arguments_give_the_same_fixture(fixture, tmp_path):
    shape = SHAPES["narrow"].cut(2)
    again = Fixture(tmp_path, videos=2, questions=5, asked_tokens=70).write(shape, "cpu")
    weights = "checkpoint/model.safetensors"
    assert (again.folder / weights).read_bytes() == (fixture.folder / weights).read_bytes()
    for name in ("0.mp4", "1.mp4"):
        # Not the bytes: on a busy machine the encoder now and then writes one that differs.
        ours, theirs = (decord.VideoReader(str(f.folder / name))[:].asnumpy().astype(int) for f in (again, fixture))
        assert abs(ours - theirs).max() <= 2


def test_the_checkpoint_never_ends_by_itself(fixture):
    """Whatever it is fed, no special token and none without a text is the likeliest: all samples have full length."""
    processor = AutoProcessor.from_pretrained(fixture.checkpoint)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(fixture.checkpoint)
    assert model.dtype == torch.bfloat16
    words = len(processor.tokenizer)
    tokens = torch.randint(20, words, (8, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        chosen = model(input_ids=tokens).logits.argmax(dim=-1)
    assert chosen.max() < words < model.config.text_config.vocab_size
    assert not set(chosen.flatten().tolist()) & set(processor.tokenizer.all_special_ids)
    assert len(chosen.unique()) > 10


def test_stopwatches_count_a_second_once():
    watches = Stopwatches()
    inner = watches.around(lambda: time.sleep(0.05), "vision")
    outer = watches.around(lambda: (time.sleep(0.02), inner()), "prefill", delay=0.02)
    outer()
    assert watches.seconds == {}
    watches.running = True
    outer()
    assert watches.calls == {"vision": 1, "prefill": 1}
    assert watches.seconds["vision"] >= 0.05
    assert 0.04 <= watches.seconds["prefill"] < watches.seconds["vision"] + 0.04
    with ThreadPoolExecutor(1) as pool:
        pool.submit(inner).result()
    assert watches.seconds["vision (background)"] >= 0.05
    assert watches.calls["vision"] == 1
    with pytest.raises(ZeroDivisionError):
        watches.around(lambda: 1 / 0, "prefill")()
    assert watches.calls["prefill"] == 2


def test_peak_memory_is_of_this_process():
    """A started process does not begin with what its parent has used, and a peak stays when it is over."""
    code = "peak = peak_resident_bytes; before = peak(); kept = bytearray(2**27); del kept; print(before, peak())"
    code = f"from lmms_eval_vreason.bench.probe import peak_resident_bytes; {code}"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, process.stdout.split())
    assert after - before == pytest.approx(2**27, rel=0.02)
    assert before < peak_resident_bytes() / 2


def test_the_command_holds_what_all_rows_share(fixture, tmp_path):
    setup = Setup(fixture, "cpu", "sdpa", tokens=17, threads=1)
    rows = all_rows([1, 4], None, "cpu")
    assert [row.batch for row in rows if row.name == STOCK] == [1]
    # Each class in what it loads by itself, or both in one dtype.
    assert {row.dtype for row in rows if row.name == STOCK} == {"bfloat16"}
    assert {row.dtype for row in rows if row.name != STOCK} == {"float32"}
    assert {row.dtype for row in all_rows([1], None, "cuda")} == {"bfloat16"}
    assert {row.dtype for row in all_rows([1], "float16", "cpu")} == {"float16"}
    for row in rows:
        line = command(replace(row, delay=0.5), setup, tmp_path)
        shared = line[line.index("--model_args") + 1]
        assert f"min_pixels={fixture.side**2},max_pixels={fixture.side**2},max_num_frames=32" in shared
        assert line[line.index("--gen_kwargs") + 1] == "max_new_tokens=17"
        assert line[line.index("--batch_size") + 1] == str(row.batch)
        assert json.loads(line[3]) == {"output": str(tmp_path / "probe.json"), "delay": 0.5, "dtype": row.dtype}
        assert (row.name == STOCK) == ("thinking=off" not in shared) == (f"dtype={row.dtype}" not in shared)


def write_run(folder: Path, *, journal: bool, samples: int = 3, tokens: int = 8, error: str | None = None) -> Path:
    """What a run leaves: the probe's file, lmms-eval's samples, and our class's journal."""
    (folder / "checkpoint").mkdir(parents=True)
    seconds = {"reading": 0.5, "waiting": 0.25, "vision": 1.0, "prefill": 2.0, "generate": 4.0}
    calls = {"reading": 3, "vision": 3}
    if journal:
        seconds |= {"reading (background)": 1.5}
        calls = {"reading (background)": 2, "vision": 1}
        writer = Journal(folder / "vreason_journal", {"run": "0" * 64})
        parts = {"read": 1.5, "generate": 2.0, "vision": 0.125, "prefill": 0.25, "ordinary": 1.0, "due": 0.5}
        for doc in range(samples):
            fault = {"type": "MediaError", "message": error} if error and doc == 1 else None
            writer.add({"key": str(doc), "seconds": parts, "peak_memory_bytes": 7000, "error": fault})
        writer.close()
    probe = {"started": 1010.0, "phase": 10.0, "cpu": 9.0, "seconds": seconds, "calls": calls}
    (folder / "probe.json").write_text(json.dumps({**probe, "peak_bytes": 5000, "attention": "sdpa"}))
    lines = (
        {"doc_id": doc, "filtered_resps": f"text {doc}", "token_counts": [{"output_tokens": tokens}]}
        for doc in range(samples)
    )
    path = folder / "checkpoint" / "20260101_000000_samples_vreason_bench.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_stock_run_becomes_figures(tmp_path):
    run = read_measurement(write_run(tmp_path / "run", journal=False), 1000.0, 1025.0, samples=3)
    assert run.seconds == {
        **{"command": 25, "loading": 10, "phase": 10, "scoring": 5, "cpu": 9, "reading_in_background": 0},
        **{"reading": 0.75, "vision": 1, "prefill": 2, "ordinary": 4, "due": 0, "rest": 2.25},
    }
    assert (run.readings, run.vision_runs, run.peak_bytes) == (3, 3, 5000)
    assert run.outputs == {doc: (8, f"text {doc}") for doc in range(3)}
    assert run.tokens == 24


def test_our_run_is_split_by_its_journal(tmp_path):
    run = read_measurement(write_run(tmp_path / "run", journal=True), 1000.0, 1025.0, samples=3)
    expected = {"reading": 0.75, "vision": 0.375, "prefill": 0.75, "ordinary": 3, "due": 1.5, "rest": 3.625}
    parts = {part: run.seconds[part] for part in PARTS}
    assert parts == pytest.approx(expected)
    assert sum(parts.values()) == pytest.approx(run.seconds["phase"])
    assert (run.readings, run.seconds["reading_in_background"], run.vision_runs, run.peak_bytes) == (2, 1.5, 1, 7000)


@pytest.mark.parametrize(
    ("journal", "error", "missing", "message"),
    [
        (True, "clip.mp4: holds no video frames", None, "1 samples failed, the first with: clip.mp4: holds no"),
        (False, None, "probe.json", "the run did not finish"),
        (False, None, "checkpoint/20260101_000000_samples_vreason_bench.jsonl", "the run did not finish"),
        (False, None, "", "it answered 3 of 4 samples"),
    ],
)
def test_a_run_that_is_not_whole_is_refused(journal, error, missing, message, tmp_path):
    folder = write_run(tmp_path / "run", journal=journal, error=error)
    if missing:
        (folder / missing).unlink()
    with pytest.raises(ValueError, match=message):
        read_measurement(folder, 1000.0, 1025.0, samples=4 if missing == "" else 3)


def measurement(phase: float, *, tokens: int = 8, text: str = "a", due: float = 0.0) -> Measurement:
    parts = dict.fromkeys(PARTS, 0.0) | {"ordinary": phase * 0.75 - due, "due": due, "rest": phase * 0.25}
    seconds = {"command": phase + 10, "loading": 8, "phase": phase, "scoring": 2, "cpu": phase / 2}
    outputs = {0: (tokens, "a"), 1: (tokens, text)}
    return Measurement({**seconds, "reading_in_background": 0.5, **parts}, 4, 1, int(phase * 100), "sdpa", outputs)


def test_rounds_become_rows():
    """Ratios are of the same round; medians and the spread are over rounds."""
    measured = {
        STOCK_ROW: [measurement(8), measurement(20), measurement(12)],
        OFF_ROW: [measurement(4), measurement(5), measurement(4)],
        STEERED_ROW: [measurement(8, text="b", due=5), measurement(5, due=3), measurement(5, due=3)],
    }
    stock, off, steered = summary(measured, 8)
    assert stock["ratios"]["stock"] == {"median": 1, "lowest": 1, "highest": 1}
    assert off["ratios"]["stock"] == {"median": 3, "lowest": 2, "highest": 4}
    assert off["ratios"]["stock_command"]["lowest"] == pytest.approx(18 / 14)
    assert off["ratios"]["off"] is stock["ratios"]["off"] is None
    assert steered["ratios"]["off"] == {"median": 0.8, "lowest": 0.5, "highest": 1}
    assert (off["samples_per_minute"], off["tokens_per_second"], off["command_samples_per_minute"]) == (
        30,
        4,
        pytest.approx(120 / 14),
    )
    assert (off["same_answers"], steered["same_answers"]) == (2, 1)
    assert off["limit"] == {"part": "ordinary", "share": 0.75}
    assert steered["limit"]["part"] == "due"
    assert (off["seconds"]["scoring"], off["peak_bytes"]) == (2, 500)


@pytest.mark.parametrize("short", [STOCK_ROW, OFF_ROW])
def test_no_ratio_where_the_tokens_are_not_equal(short, capsys):
    measured = {row: [measurement(4, tokens=7 if row is short else 8)] for row in (STOCK_ROW, OFF_ROW)}
    rows = summary(measured, 8)
    assert rows[1]["ratios"]["stock"] is None
    show(report(rows))
    assert "1.00" not in next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| ours"))


def report(rows: list[dict], reading_delay: float | None = None) -> dict:
    settings = {"videos": 4, "questions": 12, "tokens": 8, "threads": 1, "rounds": 1, "attention": "sdpa"}
    settings |= {"device": "cpu", "reading_delay": reading_delay}
    machine = {"cpu": "a CPU", "gpu": "none", "torch": "2", "transformers": "5", "lmms-eval": "0", "python": "3"}
    shape = {"name": "narrow", "layers": 28, "hidden_size": 64}
    return {"rows": rows, "settings": settings, "machine": machine, "shape": shape, "video_tokens": 400}


def test_slowed_reading_is_set_beside_the_same_round(capsys):
    """A run with delays is compared with its own run at full speed, and with nothing else."""
    slow = replace(OFF_ROW, delay=1.5)
    measured = {
        STOCK_ROW: [measurement(8), measurement(10)],
        OFF_ROW: [measurement(4), measurement(9)],
        slow: [measurement(8), measurement(12)],
    }
    row = summary(measured, 8)[2]
    assert row["delay"] == 1.5
    assert row["ratios"]["no_delay"] == {"median": 0.625, "lowest": 0.5, "highest": 0.75}
    assert row["ratios"]["stock"] is row["ratios"]["off"] is None
    show(report(summary(measured, 8), 1.5))
    printed = capsys.readouterr().out
    assert "x without delay" in printed
    assert "0.62 [0.50, 0.75]" in printed


def test_a_delay_doubles_the_baselines():
    asked = Namespace(batch_sizes=[1, 4], dtype=None, only=None, reading_delay=None)
    assert _chosen_rows(asked, "cpu") == all_rows([1, 4], None, "cpu")
    asked.reading_delay = 0.5
    rows = _chosen_rows(asked, "cpu")
    assert {row.name for row in rows} == {STOCK, OFF}
    assert [row for row in rows if row.delay] == [replace(row, delay=0.5) for row in rows if not row.delay]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--end-to-end", "--compiled"], "--compiled does not go with --end-to-end"),
        (["--end-to-end", "--batch", "2"], "--batch does not go with --end-to-end"),
        (["--videos", "2"], "--videos needs --end-to-end"),
        (["--end-to-end", "--reading-delay", "-1"], "--reading-delay -1 must be a number of seconds above 0"),
        (["--end-to-end", "--device", "cpu", "--shape", "7b"], "--shape 7b takes days on a CPU: use --device cuda"),
        (["--end-to-end", "--device", "cpu", "--attention", "flash_attention_2"], "no flash attention for cpu here"),
        (["--end-to-end", "--device", "cuda:77"], "--device cuda:77: torch sees"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys, tmp_path):
    assert main(["bench", *arguments, "--output", str(tmp_path / "x.json")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("vreason: ")
    assert error.count("\n") == 1


def test_a_checkpoint_that_does_not_fit_is_refused(monkeypatch, tmp_path):
    usage = SimpleNamespace(free=2**20)
    monkeypatch.setattr(end_to_end.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(ValueError, match="set TMPDIR to a folder with room, or give --layers"):
        end_to_end._check_room(SHAPES["medium"], "medium", "cpu", tmp_path)


@pytest.mark.cli
@pytest.mark.slow
def test_a_whole_run(tmp_path, capsys):
    """Two runs of lmms-eval's command, the stock class and ours."""
    output = tmp_path / "figures" / "bench.json"
    arguments = ["bench", "--end-to-end", "--device", "cpu", "--layers", "2", "--videos", "1", "--questions", "2"]
    arguments += ["--video-tokens", "16", "--tokens", "4", "--batch-sizes", "2", "--rounds", "1"]
    assert main([*arguments, "--dtype", "float32", "--only", "V-Reason", "--output", str(output)]) == 0
    figures = json.loads(output.read_text())
    stock, ours = figures["rows"]
    assert (stock["name"], ours["name"], ours["batch"]) == (STOCK, "ours, V-Reason", 2)
    for row in (stock, ours):
        assert row["dtype"] == "float32"
        assert row["tokens_a_sample"] == [4, 4]
        seconds = row["seconds"]
        assert 0 < sum(seconds[part] for part in PARTS) == pytest.approx(seconds["phase"])
        assert min(seconds["vision"], seconds["prefill"], seconds["ordinary"], row["peak_bytes"]) > 0
        assert 0 < seconds["cpu"] < seconds["command"]
    assert stock["seconds"]["due"] == 0 < ours["seconds"]["due"]
    assert (stock["readings"], ours["readings"]) == (2, 1)
    assert ours["ratios"]["stock"]["median"] > 0
    assert ours["ratios"]["off"] is None
    printed = capsys.readouterr()
    assert "| ours, V-Reason " in printed.out
    assert "round 1 of 1, " in printed.err
