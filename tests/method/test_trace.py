"""A trace, number by number from a recorder fed by hand, and in a model over many tokens."""

import numpy as np
import pytest
import torch
from random_model import at_video, forced_run, prompt, random_model

from lmms_eval_vreason import VReason
from lmms_eval_vreason.method import trace as trace_module
from lmms_eval_vreason.method.trace import COLUMNS, TraceRecorder

SAMPLES = [prompt(seed=1), prompt(seed=2, videos=((2, 4, 6),), text=11)]


@pytest.fixture(scope="module")
def model():
    return random_model()


def test_trace_arrays(model):
    loop = forced_run(model, VReason(update_every=1), SAMPLES, 7)
    for trace in loop.traces:
        for name in COLUMNS:
            column = getattr(trace, name)
            assert (column.shape, column.dtype) == ((7,), np.float32)
        assert trace.seconds_due > 0
        assert trace.seconds_ordinary == 0
    moved = loop.decoding.steering.shift
    for row, trace in enumerate(loop.traces):
        delta, original = (at_video(moved, x, row) for x in (moved.delta, moved.original))
        shift = delta.norm() / original.norm()
        assert trace.shift[-1] == pytest.approx(shift.item(), rel=1e-5)
        assert trace.video_tokens == len(delta)


def test_trace_over_many_tokens(model):
    """Averages are asked for at each update, the rest moves to the host at the end; none is lost or doubled."""
    short, long = (forced_run(model, VReason(), SAMPLES, count) for count in (63, 130))
    for a, b in zip(short.traces, long.traces, strict=True):
        assert len(b.entropy) == 130
        assert np.allclose(a.ema, b.ema[:63], rtol=1e-6)
        assert b.updates == 65


def update(active, alpha, refreshed, changed, grad_norm, shift):
    names = ("active", "alpha", "refreshed", "changed", "grad_norm", "shift")
    values = (active, alpha, refreshed, changed, grad_norm, shift)
    return {name: torch.tensor(value, dtype=torch.float32) for name, value in zip(names, values, strict=True)}


@pytest.fixture
def clock(monkeypatch):
    """A one-element list: the seconds that the recorder reads."""
    seconds = [0.0]
    monkeypatch.setattr(trace_module.time, "perf_counter", lambda: seconds[0])
    return seconds


def recorded(clock, **choices):
    """Two samples, the second one token shorter, with updates at tokens 1 and 3; steps take 1, 2, 3 and 4 seconds."""
    recorder, nan = TraceRecorder(2, VReason(ema_decay=0.5, **choices)), float("nan")
    entropies = [[4.0, 2.0], [2.0, 4.0], [1.0, nan], [3.0, 2.0]]
    updates = {
        1: update([1, 0], [-1, 1], [1.5, 9.0], [1, 1], [2.0, 9.0], [0.1, 0.0]),
        3: update([1, 1], [1, 1], [nan, nan], [1, 1], [3.0, 9.0], [0.2, 9.0]),
    }
    clock[0] = 10.0
    recorder.prefilled(5.0)
    for token, entropy in enumerate(entropies):
        recorder.add(torch.tensor(entropy))
        if token in updates:
            ema, peak = recorder.averages()
            assert all(average <= highest for average, highest in zip(ema, peak, strict=True))
            recorder.add_update(updates[token])
        clock[0] += token + 1
        assert recorder.chosen([token < 3, token < 2]) == (token == 3)
    return recorder


@pytest.mark.parametrize(("keep_shift", "between"), [(True, 0.1), (False, 0.0)])
def test_a_recorder_fed_by_hand(clock, keep_shift, between):
    nan = float("nan")
    first, second = recorded(clock, keep_shift=keep_shift).traces([5, 6], ["no update"] * 2, ["", ""])
    expected = {
        "entropy": [4, 2, 1, 3],
        "ema": [2, 2, 1.5, 2.25],
        "peak": [2, 2, 2, 2.25],
        "alpha": [0, -1, 0, 1],
        "entropy_change": [nan, -0.5, nan, nan],
        "changed": [nan, 1, nan, nan],
        "shift": [0, 0.1, between, 0.2],
        "grad_norm": [nan, 2, nan, 3],
    }
    assert set(expected) == set(COLUMNS)
    for name, column in expected.items():
        assert np.array_equal(getattr(first, name), np.array(column, "float32"), equal_nan=True), name
        assert getattr(first, name).dtype == getattr(second, name).dtype == np.float32
    assert (first.updates, first.peak_index, first.video_tokens, first.note) == (2, 3, 5, "")
    assert (first.seconds_prefill, first.seconds_ordinary, first.seconds_due) == (5.0, 3.0, 6.0)
    assert (first.ordinary_steps, first.due_steps) == (second.ordinary_steps, second.due_steps) == (1, 2)
    # An update that was another sample's leaves nothing here, and an entropy that is not finite no average.
    assert second.ema.tolist() == [1, 2.5, 2.5]
    assert second.alpha.tolist() == second.shift.tolist() == [0, 0, 0]
    assert np.isnan([*second.entropy_change, *second.changed, *second.grad_norm]).all()
    assert (second.updates, second.peak_index, second.video_tokens) == (0, 1, 6)
    assert second.note == "the model's logits were not finite"


def test_a_corrected_average_starts_at_the_first_entropy(clock):
    """β = 0.5: the weights of the tokens so far are 1, then 1/3 and 2/3, then 1/7, 2/7 and 4/7."""
    first, _ = recorded(clock, ema_correction=True).traces([5, 6], [""] * 2, [""] * 2)
    assert first.ema[:3] == pytest.approx([4, (4 + 2 * 2) / 3, (4 + 2 * 2 + 4 * 1) / 7])
    assert first.peak.tolist() == [4] * 4


def test_averages_hold_the_last_token_and_nothing_waits_for_the_device_before_they_are_asked_for():
    recorder = TraceRecorder(1, VReason(ema_decay=0.5))
    for _ in range(130):
        recorder.add(torch.ones(1))
        recorder.add_update(update([1], [1], [1], [0], [1], [0.1]))
    assert not recorder._rows
    assert recorder.averages() == ([pytest.approx(1.0)], [pytest.approx(1.0)])
    recorder.add(torch.full((1,), 3.0))
    assert recorder.averages() == ([pytest.approx(2.0)], [pytest.approx(2.0)])
    recorder.add(torch.zeros(1))
    assert recorder.averages() == ([pytest.approx(1.0)], [pytest.approx(2.0)])


def test_a_note_counts_without_an_update_and_a_fault_always(clock):
    recorder = TraceRecorder(3, VReason())
    for _ in range(2):
        recorder.add(torch.tensor([1.0, 1.0, torch.inf]))
        recorder.chosen([True] * 3)
    recorder.add_update(update([1, 0, 1], [1] * 3, [1] * 3, [0] * 3, [1] * 3, [0.1] * 3))
    traces = recorder.traces([1] * 3, ["note"] * 3, ["", "", "fault"])
    assert [trace.note for trace in traces] == ["", "note", "the model's logits were not finite"]
    assert [trace.ema[0] for trace in traces] == [trace.peak[0] for trace in traces] == pytest.approx([0.1, 0.1, 0])
    again = recorder.traces([1] * 3, ["note"] * 3, ["fault"] * 3)
    assert [trace.note for trace in again[:2]] == ["fault", "fault"]
    with pytest.raises(ValueError, match="shorter"):
        recorder.traces([1] * 3, ["note"] * 2, [""] * 3)


def test_nothing_generated():
    (trace,) = TraceRecorder(1, VReason()).traces([0], ["note"], [""])
    assert (len(trace.entropy), trace.peak_index, trace.updates, trace.note) == (0, -1, 0, "note")
    assert (trace.due_steps, trace.ordinary_steps, trace.seconds_ordinary) == (0, 0, 0)
