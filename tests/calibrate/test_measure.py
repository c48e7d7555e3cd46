"""Replays of the real model class's samples: they are the run's own answers, and a run goes on where it stopped."""

import json
from dataclasses import replace

import pytest
from instances import instances
from offline import write_video

from lmms_eval_vreason import VReason
from lmms_eval_vreason.adapter.options import parse_options
from lmms_eval_vreason.calibrate import measure as module
from lmms_eval_vreason.calibrate.measure import AnsweredBatch, Sizes, measure
from lmms_eval_vreason.calibrate.replay import replay
from lmms_eval_vreason.media.frames import read_media
from lmms_eval_vreason.run.generation import Generator

GREEDY = {"do_sample": False, "max_new_tokens": 12}
METHODS = {"still": VReason(learning_rate=0), "strong": VReason.preset("strong", policy="minimize", min_entropy=1e-4)}
SIZES = Sizes(batch_size=2, max_new_tokens=12)


@pytest.fixture
def video(tmp_path):
    return str(write_video(tmp_path / "a.mp4"))


@pytest.fixture
def base(load):
    small = {"min_pixels": 784, "max_pixels": 56 * 56, "max_num_frames": 4}
    return load(policy="off", journal="off", max_thinking_tokens=6, max_answer_tokens=3, **small)


def samples_of(model, video, count=3, settings=GREEDY):
    docs = [{"video": video, "text": f"what moves? {'really ' * index}"} for index in range(count)]
    return model.samples(instances(model, docs, settings))


def test_the_answers_are_those_of_a_run(base, video):
    """Its budgets, forced tags and stops included."""
    samples = samples_of(base, video)
    media = [read_media(sample.media, base.options.video) for sample in samples]
    completions = Generator(base.setup).generate(samples, media)
    batch = AnsweredBatch(base, samples, 99)
    ours = [[base.tokenizer.decode([token]) for token in answer] for answer in batch.answers]
    assert ours == [completion.tokens for completion in completions]
    assert "</think>" in "".join(ours[0])


def test_an_answer_is_no_longer_than_asked_for(base, video):
    assert max(map(len, AnsweredBatch(base, samples_of(base, video), 5).answers)) == 5


def test_lines_hold_each_setting_s_numbers(base, video, tmp_path):
    lines = measure(base, samples_of(base, video), METHODS, SIZES, tmp_path / "lines.jsonl")
    assert [(line["setting"], len(line["entropy"])) for line in lines] == [
        ("still", 2), ("strong", 2), ("still", 1), ("strong", 1)]  # fmt: skip
    for line in lines:
        steered = line["setting"] == "strong"
        for entropy, before, kl in zip(line["entropy"], line["base_entropy"], line["kl"], strict=True):
            assert (entropy == pytest.approx(before, abs=1e-6)) != steered
            assert (max(kl) > 1e-6) == steered
        assert (max(line["shift"]) > 0) == steered
        assert line["seconds"] > 0 < line["base_seconds"]


def test_a_killed_run_goes_on_from_its_lines(base, video, tmp_path, monkeypatch):
    path, samples = tmp_path / "lines.jsonl", samples_of(base, video)
    whole = measure(base, samples, METHODS, SIZES, path)
    first, second, *_ = path.read_text().splitlines()
    path.write_text(f"{first}\n{second[: len(second) // 2]}")
    compared = []
    compare = AnsweredBatch.compare
    monkeypatch.setattr(AnsweredBatch, "compare", lambda self, m: compared.append(m) or compare(self, m))
    again = measure(base, samples, METHODS, SIZES, path)
    assert len(compared) == 3
    assert [line["entropy"] for line in again] == [line["entropy"] for line in whole]
    assert measure(base, samples, METHODS, SIZES, path) == again
    assert len(compared) == 3
    assert len([text for text in path.read_text().splitlines() if text.startswith('{"key"')]) >= 4


@pytest.mark.parametrize("change", ["settings", "length", "samples"])
def test_lines_of_something_else_are_not_taken(base, video, tmp_path, change):
    path, samples, methods, sizes = tmp_path / "lines.jsonl", samples_of(base, video), dict(METHODS), SIZES
    measure(base, samples[:1], methods, sizes, path)
    before = len(path.read_text().splitlines())
    if change == "settings":
        methods["strong"] = VReason.preset("strong")
    elif change == "length":
        sizes = Sizes(2, 7)
    else:
        samples = samples[1:]
    measure(base, samples[:1], methods, sizes, path)
    added = [json.loads(text) for text in path.read_text().splitlines()[before:] if text]
    assert len(added) == (1 if change == "settings" else 2)


def test_a_sample_that_cannot_be_read_is_named(base, video, tmp_path):
    samples = samples_of(base, f"{video}-missing.mp4")
    with pytest.raises(ValueError, match=r"missing\.mp4"):
        measure(base, samples, METHODS, SIZES, tmp_path / "lines.jsonl")


def test_samples_with_other_generation_settings_are_in_other_batches(base, video):
    samples = samples_of(base, video, 2) + samples_of(base, video, 2, {**GREEDY, "repetition_penalty": 1.2})
    batches = module._batches(samples, 3)
    assert [len(batch) for batch in batches] == [2, 2]
    assert all(len({repr(sample.settings) for sample in batch}) == 1 for batch in batches)


def test_every_setting_of_the_grid_is_one_of_the_model_class():
    from lmms_eval_vreason.calibrate.settings import GRID

    methods = [parse_options(arguments).method for arguments in GRID.values()]
    assert len(set(methods)) == len(GRID) == 8


@pytest.fixture
def replays(monkeypatch):
    """The replays that are made, with a prefill of 4 s on a clock that shows 10 s more at each look."""
    made, ticks = [], iter(range(0, 1000, 10))

    def noted(*args, **kwargs):
        result = replay(*args, **kwargs)
        made.append(replace(result, traces=[replace(trace, seconds_prefill=4.0) for trace in result.traces]))
        return made[-1]

    monkeypatch.setattr(module, "replay", noted)
    monkeypatch.setattr(module, "now", lambda device: float(next(ticks)))
    return made


def test_exploiting_is_where_switch_lowers_the_entropy(base, video, replays):
    method = VReason(policy="switch", update_every=1, min_entropy=0.0, ema_decay=0.5)
    line = AnsweredBatch(base, samples_of(base, video), 12).compare(method)
    signs = {
        (flag, alpha)
        for flags, trace in zip(line["exploiting"], replays[-1].traces, strict=True)
        for flag, alpha in zip(flags, trace.alpha.tolist(), strict=True)
        if alpha
    }
    assert signs == {(True, -1.0), (False, 1.0)}


def test_seconds_are_of_a_step_and_without_the_prefill(base, video, replays):
    batch = AnsweredBatch(base, samples_of(base, video), 12)
    line = batch.compare(METHODS["strong"])
    longest = max(map(len, batch.answers))
    assert line["seconds"] == line["base_seconds"] == pytest.approx((10 - 4) / longest)
