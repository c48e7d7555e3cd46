"""The trained checkpoint: it answers from the video, and V-Reason acts on its real distributions."""

import numpy as np
import pytest
import torch

from lmms_eval_vreason import VReason
from lmms_eval_vreason.cli import main
from lmms_eval_vreason.shapes import checkpoint_dir
from lmms_eval_vreason.shapes.dataset import make_items
from lmms_eval_vreason.shapes.evaluate import Reasoner
from lmms_eval_vreason.shapes.render import sampled

MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def shapes():
    return Reasoner.load()


@pytest.fixture(scope="module")
def items():
    return make_items("validation", 45)


@pytest.fixture(scope="module")
def traced(shapes, items):
    """Each policy's answers to the same questions."""
    return {
        policy: shapes.answer(items, method=VReason(policy=policy, learning_rate=0.03))
        for policy in ("off", "switch", "minimize", "maximize")
    }


def test_the_weights_are_half_precision_and_small():
    weights = checkpoint_dir() / "model.safetensors"
    assert weights.stat().st_size <= 8 * MEBIBYTE
    from safetensors import safe_open

    with safe_open(weights, framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118


def test_the_command_prints_the_folder(capsys):
    assert main(["checkpoint"]) == 0
    assert capsys.readouterr().out.strip() == str(checkpoint_dir())


def test_it_answers_in_form_and_from_the_video(shapes, items):
    frames = [sampled(item.pictures) for item in items]
    own = shapes.answer(items, frames)
    others = shapes.answer(items, frames[9:] + frames[:9])
    assert own.format_valid >= 0.99
    assert own.accuracy >= 0.9
    assert others.accuracy <= 0.5


def test_thinking_lengths_and_entropies_vary(traced):
    lengths = [len(trace.entropy) for trace in traced["off"].traces]
    assert max(lengths) >= 2 * min(lengths)
    entropy = np.concatenate([trace.entropy for trace in traced["off"].traces])
    assert (entropy > 0.5).mean() > 0.01
    assert (entropy < 0.05).mean() > 0.2


@pytest.mark.parametrize(("policy", "sign"), [("minimize", -1), ("maximize", 1)])
def test_an_update_moves_the_entropy_its_way(traced, policy, sign):
    changes, entropies = (
        np.concatenate([getattr(trace, name) for trace in traced[policy].traces])
        for name in ("entropy_change", "entropy")
    )
    unsure = np.isfinite(changes) & (entropies > 0.1)
    assert unsure.sum() >= 30
    assert (np.sign(changes[unsure]) == sign).mean() > 0.75


def test_traces_look_like_the_methods_figure(traced):
    alphas = set()
    for trace in traced["switch"].traces:
        assert trace.updates > 0
        assert np.all(np.diff(trace.peak) >= 0)
        assert np.all(trace.ema <= trace.peak + 1e-6)
        assert trace.ema[0] < trace.ema.max()
        due = trace.alpha != 0
        rising = trace.ema >= trace.peak
        assert np.array_equal(trace.alpha[due] > 0, rising[due])
        alphas |= set(trace.alpha[due].tolist())
    assert alphas == {-1.0, 1.0}
