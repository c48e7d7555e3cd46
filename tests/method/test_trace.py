"""A trace: its arrays, and more tokens than a block holds."""

import numpy as np
import pytest
from random_model import at_video, forced_run, prompt, random_model

from lmms_eval_vreason import VReason
from lmms_eval_vreason.method.trace import COLUMNS

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


def test_trace_over_more_tokens_than_a_block(model):
    """Columns move to the host 64 tokens at a time; none is lost or doubled."""
    short, long = (forced_run(model, VReason(), SAMPLES, count) for count in (63, 130))
    for a, b in zip(short.traces, long.traces, strict=True):
        assert len(b.entropy) == 130
        assert np.allclose(a.ema, b.ema[:63], rtol=1e-6)
        assert b.updates == 65
