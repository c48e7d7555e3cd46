"""``vreason bench --end-to-end``: its fixture, its figures, and one whole run."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import decord
import pytest
import torch
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from lmms_eval_vreason.bench.command_runs import Measurement, Row, Setup, command, read_measurement
from lmms_eval_vreason.bench.end_to_end import OFF, STOCK, all_rows, show, summary
from lmms_eval_vreason.bench.fixture import Fixture
from lmms_eval_vreason.bench.probe import peak_resident_bytes
from lmms_eval_vreason.bench.sizes import shape_of
from lmms_eval_vreason.cli import main
from lmms_eval_vreason.journal.writer import Journal

STOCK_ROW = Row(STOCK, "qwen2_5_vl", "", 1, "bfloat16")
OFF_ROW = Row(OFF, "qwen2_5_vl_vreason", "", 4, "bfloat16")
STEERED_ROW = Row("ours, V-Reason", "qwen2_5_vl_vreason", "", 4, "bfloat16")


@pytest.fixture(scope="module")
def fixture(tmp_path_factory) -> Fixture:
    folder = tmp_path_factory.mktemp("fixture")
    shape = shape_of("narrow", 2)
    return Fixture(folder, videos=2, questions=5, asked_tokens=70).write(shape, "cpu")


def test_the_fixture_has_its_questions_and_video_tokens(fixture):
    documents = [json.loads(line) for line in (fixture.folder / "task" / "documents.json").read_text().splitlines()]
    assert len(documents) == 10
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
    shape = shape_of("narrow", 2)
    again = Fixture(tmp_path, videos=2, questions=5, asked_tokens=70).write(shape, "cpu")
    weights = "checkpoint/model.safetensors"
    assert (again.folder / weights).read_bytes() == (fixture.folder / weights).read_bytes()
    for name in ("0.mp4", "1.mp4"):
        # Not the bytes: on a busy machine the encoder now and then writes one that differs.
        ours, theirs = (decord.VideoReader(str(f.folder / name))[:].asnumpy().astype(int) for f in (again, fixture))
        assert abs(ours - theirs).max() <= 2


def test_the_checkpoint_never_ends_by_itself(fixture):
    """Whatever it is fed, no special token and none without a text is the likeliest: all samples have full length."""
    processor = AutoProcessor.from_pretrained(fixture.folder / "checkpoint")
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(fixture.folder / "checkpoint")
    assert model.dtype == torch.bfloat16
    words = len(processor.tokenizer)
    tokens = torch.randint(20, words, (8, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        chosen = model(input_ids=tokens).logits.argmax(dim=-1)
    assert chosen.max() < words < model.config.text_config.vocab_size
    assert not set(chosen.flatten().tolist()) & set(processor.tokenizer.all_special_ids)
    assert len(chosen.unique()) > 10


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
        line = command(row, setup, tmp_path)
        shared = line[line.index("--model_args") + 1]
        assert f"min_pixels={fixture.side**2},max_pixels={fixture.side**2},max_num_frames=32" in shared
        assert line[line.index("--gen_kwargs") + 1] == "max_new_tokens=17"
        assert line[line.index("--batch_size") + 1] == str(row.batch)
        assert json.loads(line[3]) == {"output": str(tmp_path / "probe.json"), "dtype": row.dtype}
        assert (row.name == STOCK) == ("thinking=off" not in shared) == (f"dtype={row.dtype}" not in shared)


def write_run(folder: Path, *, journal: bool, samples: int = 3, tokens: int = 8, error: str | None = None) -> Path:
    """What a run leaves: the probe's file, lmms-eval's samples, and our class's journal."""
    (folder / "checkpoint").mkdir(parents=True)
    if journal:
        writer = Journal(folder / "vreason_journal", {"run": "0" * 64})
        for doc in range(samples):
            fault = {"type": "MediaError", "message": error} if error and doc == 1 else None
            writer.add({"key": str(doc), "peak_memory_bytes": 7000 - doc, "error": fault})
        writer.close()
    (folder / "probe.json").write_text(json.dumps({"seconds": {"wall": 10.0, "CPU": 9.0}, "peak_bytes": 5000}))
    lines = (
        {"doc_id": doc, "filtered_resps": f"text {doc}", "token_counts": [{"output_tokens": tokens}]}
        for doc in range(samples)
    )
    path = folder / "checkpoint" / "20260101_000000_samples_vreason_bench.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize("journal", [False, True])
def test_a_run_becomes_figures(journal, tmp_path):
    run = read_measurement(write_run(tmp_path / "run", journal=journal), samples=3, tokens=8)
    assert run.seconds == {"wall": 10, "CPU": 9}
    assert run.peak_bytes == (7000 if journal else 5000)
    assert run.texts == {doc: f"text {doc}" for doc in range(3)}


@pytest.mark.parametrize(
    ("journal", "error", "missing", "message"),
    [
        (True, "clip.mp4: holds no video frames", None, "1 samples failed, the first with: clip.mp4: holds no"),
        (False, None, "probe.json", "the run did not finish"),
        (False, None, "checkpoint/20260101_000000_samples_vreason_bench.jsonl", "the run did not finish"),
        (False, None, "sample", "it answered 3 of 4 samples"),
        (False, None, "token", r"it answered 3 of 3 samples, with \[8\] tokens for 9"),
    ],
)
def test_a_run_that_is_not_whole_is_refused(journal, error, missing, message, tmp_path):
    folder = write_run(tmp_path / "run", journal=journal, error=error)
    if missing not in (None, "sample", "token"):
        (folder / missing).unlink()
    with pytest.raises(ValueError, match=message):
        read_measurement(folder, samples=3 + (missing == "sample"), tokens=8 + (missing == "token"))


def measurement(seconds: float, text: str = "a") -> Measurement:
    return Measurement({"wall": 100.0, "CPU": seconds}, int(seconds * 100), {0: "a", 1: text})


def test_rounds_become_rows(capsys):
    """Ratios are of the same round and on the given clock; medians and quartiles are over rounds."""
    measured = {
        STOCK_ROW: [measurement(8), measurement(20), measurement(12)],
        replace(OFF_ROW, batch=1): [measurement(2), measurement(2), measurement(2)],
        OFF_ROW: [measurement(4), measurement(5), measurement(4)],
        STEERED_ROW: [measurement(8, "b"), measurement(5), measurement(5)],
        replace(STEERED_ROW, batch=8, dtype="float32"): [measurement(1)] * 3,
    }
    rows = summary(measured, "CPU")
    stock, _, off, steered, alone = rows
    assert stock["ratio_stock"] == [1, 1, 1]
    assert stock["ratio_off"] is None
    assert off["ratio_stock"] == [2.5, 3, 3.5]
    assert off["ratio_off"] == [1, 1, 1]
    assert steered["ratio_off"] == pytest.approx([0.65, 0.8, 0.9])
    assert alone["ratio_off"] is None
    assert (off["samples_per_minute"], off["peak_bytes"]) == (30, 500)
    assert [row["same_answers"] for row in (stock, off, steered, alone)] == [2, 2, 1, None]
    show(report(rows))
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| ours, V-Reason, batch 4"))
    assert "0.80 [0.65, 0.90]" in line
    assert summary(measured, "wall")[2]["ratio_stock"] == [1, 1, 1]


def report(rows: list[dict]) -> dict:
    settings = {"videos": 4, "questions": 12, "tokens": 8, "threads": 1, "rounds": 1, "attention": "sdpa"}
    machine = {"cpu": "a CPU", "gpu": "none", "torch": "2", "transformers": "5", "lmms-eval": "0", "python": "3"}
    shape = {"name": "narrow", "layers": 28, "hidden_size": 64}
    settings |= {"device": "cpu"}
    return {"rows": rows, "settings": settings, "machine": machine, "shape": shape, "video_tokens": 400, "clock": "CPU"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--end-to-end", "--compiled"], "--compiled does not go with --end-to-end"),
        (["--videos", "2"], "--videos needs --end-to-end"),
        (["--end-to-end", "--video-tokens", "16,32"], "--end-to-end takes one number of --video-tokens"),
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


@pytest.mark.cli
@pytest.mark.slow
def test_a_whole_run(tmp_path, capsys):
    """Two runs of lmms-eval's command, the stock class and ours."""
    output = tmp_path / "figures" / "bench.json"
    arguments = ["bench", "--end-to-end", "--device", "cpu", "--layers", "2", "--videos", "1", "--questions", "2"]
    arguments += ["--video-tokens", "16", "--tokens", "4", "--batch", "2", "--rounds", "1"]
    assert main([*arguments, "--dtype", "float32", "--only", "V-Reason", "--output", str(output)]) == 0
    figures = json.loads(output.read_text())
    stock, ours = figures["rows"]
    assert (stock["name"], ours["name"], ours["batch"]) == (STOCK, "ours, V-Reason", 2)
    for row in (stock, ours):
        assert row["dtype"] == "float32"
        assert row["peak_bytes"] > 0
        assert row["seconds"][0]["CPU"] > 0
    theirs, own = (row["seconds"][0][figures["clock"]] for row in (stock, ours))
    assert ours["ratio_stock"] == pytest.approx([theirs / own] * 3)
    assert ours["ratio_off"] is None
    printed = capsys.readouterr()
    assert "| ours, V-Reason, batch 2, float32 " in printed.out
    assert "round 1 of 1, " in printed.err
