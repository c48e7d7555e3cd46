"""What goes wrong in a run of days: kills, full disks, broken videos, hostile text, too little memory."""

import json
import resource
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from instances import instances
from offline import write_video

from lmms_eval_vreason.adapter.model import Qwen2_5_VL_VReason
from lmms_eval_vreason.journal.files import JournalError, journal_files, latest_samples, read_lines, read_records
from lmms_eval_vreason.run.generation import Generator

SMALL = {
    "min_pixels": 784,
    "max_pixels": 56 * 56,
    "max_num_frames": 4,
    "max_thinking_tokens": 3,
    "max_answer_tokens": 2,
}


def answer(model, docs):
    requests = instances(model, docs, {"do_sample": False, "until": []})
    return [result.text for result in model.generate_until(requests)]


def records(model):
    return {r["doc_id"]: r for r in latest_samples(read_records(model._journal.folder)).values()}


@pytest.fixture
def build(load):
    return partial(load, **SMALL)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "whole.mp4")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_twenty_kills_change_no_answer(tiny_checkpoint, tmp_path, processes):
    """Slow for its twenty restarts, each of which loads the model: that is what is tested."""
    for seed in range(4):
        write_video(tmp_path / "killed" / f"{seed}.mp4", seed=seed)
    # Copied: encoding twice does not give the same bits, and one answer is close enough to a tie to show it.
    shutil.copytree(tmp_path / "killed", tmp_path / "whole")

    def run(folder, kills):
        command = [sys.executable, str(Path(__file__).parents[1] / "killed_run.py"), str(tmp_path / folder)]
        command += [str(tiny_checkpoint), str(processes), str(kills)]
        # What it says on stderr is in the report of a test that fails.
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=280, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    whole, killed = run("whole", 0), run("killed", 20 // processes)
    assert killed["codes"] == whole["codes"] == [0] * processes
    assert killed["killed"] == 20
    assert len(whole["answers"]) == 60
    assert killed["answers"] == whole["answers"]
    lines = [line for path in journal_files(tmp_path / "killed" / "journal") for line in read_lines(path)]
    assert all(line.record for line in lines)


def test_a_full_disk_ends_the_run_with_a_clear_word(build, video):
    docs = [{"video": str(video), "text": f"question {i}"} for i in range(6)]
    model = build()
    answer(model, docs[:1])
    # Room for two lines and a half: what a full disk does to a write, without a disk to fill.
    line = len(model._journal.path.read_bytes().splitlines()[-1])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (model._journal.path.stat().st_size + 5 * line // 2, hard))
    try:
        with pytest.raises(JournalError, match=r"cannot be written .* run the same command again"):
            answer(model, docs)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert all(line.record for line in read_lines(model._journal.path))
    kept = len(latest_samples(read_records(model._journal.folder)))
    assert 1 < kept < 6
    again = build()
    assert len(again._journal.finished) == kept
    assert len(answer(again, docs)) == len(records(again)) == 6


@pytest.mark.parametrize("oom", ["error", "lite"])
def test_too_little_memory_halves_the_batch_and_then_marks_the_sample(build, video, monkeypatch, oom):
    generate, sizes = Generator.generate, []

    def scarce(self, samples, media, method=None):
        sizes.append(len(samples))
        if len(samples) > 1 or (samples[0].doc_id == 1 and method is None):
            raise torch.OutOfMemoryError("out of memory")
        return generate(self, samples, media, method)

    docs = [{"video": str(video), "text": f"question {i}"} for i in range(4)]
    expected = answer(build(journal="off"), docs)
    monkeypatch.setattr(Generator, "generate", scarce)
    model = build(batch_size=4, oom=oom)
    texts = answer(model, docs)
    assert sizes[:3] == [4, 2, 1]
    assert [texts[i] for i in (0, 2, 3)] == [expected[i] for i in (0, 2, 3)]
    record = records(model)[1]
    if oom == "lite":
        assert record["error"] is None
        assert "prune_ratio=0.5" in record["remark"]
        assert record["trace"]["video_tokens"] < records(model)[0]["trace"]["video_tokens"]
    else:
        assert record["error"]["type"] == "OutOfMemoryError"
    # With oom=error the sample is tried again, and with enough memory the method itself answers it.
    monkeypatch.setattr(Generator, "generate", generate)
    assert answer(build(oom="error"), docs) == expected
    assert records(model)[1]["remark"] == ""


def test_logits_that_are_not_finite_are_marked(build, video):
    model = build()
    with torch.no_grad():
        model._model.lm_head.weight.fill_(torch.nan)
    answer(model, [{"video": str(video), "text": "question"}])
    assert records(model)[0]["trace"]["note"] == "the model's logits were not finite"


def test_a_prompt_over_the_context_is_an_error_of_its_sample(build, video):
    model = build()
    model._model.config.text_config.max_position_embeddings = 60
    answer(model, [{"video": str(video), "text": "question"}])
    assert "lower max_num_frames or max_pixels" in records(model)[0]["error"]["message"]


def test_a_video_beyond_the_bounds_is_refused_before_it_is_decoded(build, video, monkeypatch):
    monkeypatch.setattr("lmms_eval_vreason.media.frames.MAX_SOURCE_PIXELS", 100)
    model = build()
    answer(model, [{"video": str(video), "text": "question"}])
    assert "over the bound of 100" in records(model)[0]["error"]["message"]


STRUCTURE = ["<|im_end|>", "<|im_start|>", "<|video_pad|>", "<|vision_start|>", "</think>", "<answer>", "<think>"]
texts = st.one_of(
    st.just(""),
    st.text(max_size=40),
    st.text(alphabet="\x00\x07\x1b\u202e\ufeff\n\t", max_size=12),
    st.lists(st.one_of(st.sampled_from(STRUCTURE), st.text(max_size=6)), max_size=8).map(" ".join),
    st.sampled_from(["why ", "三个圆 "]).map(lambda word: word * 25_000),
)
damages = st.one_of(
    st.just(("none",)),
    st.just(("none",)),
    st.tuples(st.just("cut"), st.floats(0, 1)),
    st.tuples(st.just("flip"), st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=8)),
)
shapes = st.tuples(st.integers(1, 4), st.sampled_from([(64, 48), (98, 56), (112, 84), (34, 18), (2, 2), (640, 4)]))


def damaged(data, damage):
    if damage[0] == "cut":
        return data[: int(len(data) * damage[1])]
    if damage[0] == "flip":
        content = bytearray(data)
        for place, value in damage[1]:
            content[min(int(place * len(content)), len(content) - 1)] ^= value
        return bytes(content)
    return data


@pytest.mark.slow
def test_three_hundred_bad_inputs_are_answered_or_marked(tiny_checkpoint, tmp_path):
    """Three hundred samples, each answered or marked; slow for their number."""
    plain = {}

    def source(frames, size):
        if (frames, size) not in plain:
            plain[frames, size] = write_tiny(tmp_path / f"{frames}-{size[0]}-{size[1]}.mp4", frames, size).read_bytes()
        return plain[frames, size]

    cases = []

    @settings(
        max_examples=300,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(shapes, damages, texts)
    def collect(shape, damage, text):
        path = tmp_path / f"case{len(cases)}.mp4"
        path.write_bytes(damaged(source(*shape), damage))
        cases.append({"video": str(path), "text": text})

    collect()
    model = Qwen2_5_VL_VReason(
        pretrained=str(tiny_checkpoint), device="cpu", journal=str(tmp_path / "journal"), max_error_rate=1.0, **SMALL
    )
    results = answer(model, cases)
    found = records(model)
    assert len(cases) >= 250
    assert len(found) == len(results) == len(cases)
    answered = [doc for doc, record in found.items() if record["error"] is None]
    assert 50 < len(answered) < len(cases)
    for doc in answered:
        assert found[doc]["trace"]["video_tokens"] > 0
        assert not any(token in found[doc]["prompt"] for token in STRUCTURE[:4])
    for record in found.values():
        if record["error"] is not None:
            assert record["error"]["type"] in ("MediaError", "ValueError"), record["error"]
            assert record["text"] == ""


def write_tiny(path, frames, size):
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for i in range(frames):
            picture = np.full((size[1], size[0], 3), 60 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path
