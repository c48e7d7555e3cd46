"""Every hyperparameter does what it says, in a model."""

from itertools import combinations

import numpy as np
import pytest
import torch
from random_model import Forced, at_video, batch, forced_run, forced_tokens, packed, placed, prompt, random_model, steer
from transformers import LogitsProcessorList

from lmms_eval_vreason import VReason

SAMPLES = [prompt(seed=1), prompt(seed=2, videos=((2, 4, 6),), text=11)]


@pytest.fixture(scope="module")
def model():
    return random_model()


def run(model, count=8, **hyperparameters):
    return forced_run(model, VReason(**hyperparameters), SAMPLES, count)


def turns(loop):
    return packed(loop.decoding.steering.shift, loop.decoding.steering.shift.turns)


def delta(loop):
    return packed(loop.decoding.steering.shift, loop.decoding.steering.shift.delta)


@pytest.mark.parametrize("update_every", [1, 2, 3, 5])
def test_update_every(model, update_every):
    """Token 0 comes from the prefill and has none."""
    loop = run(model, count=11, update_every=update_every)
    due = [token for token in range(1, 11) if (token + 1) % update_every == 0]
    for trace in loop.traces:
        assert np.flatnonzero(trace.alpha).tolist() == due
        assert np.flatnonzero(~np.isnan(trace.grad_norm)).tolist() == due
        assert trace.updates == len(due)


def test_refresh_changes_the_token_that_caused_the_update(model):
    """Without it the update's own token sees the old logits; the next token sees the new cache either way."""
    logits = {}
    for refresh in (True, False):
        processor = Forced(forced_tokens(2, 3))
        settings = {"logits_processor": LogitsProcessorList([processor])}
        method = VReason(refresh=refresh, keep_shift=True, learning_rate=0.1)
        _, loop = steer(model, method, **batch(SAMPLES), max_new_tokens=3, **settings)
        assert np.isnan(loop.traces[0].entropy_change[1]) != refresh
        logits[refresh] = processor.logits
    base = Forced(forced_tokens(2, 3))
    inputs = placed(model, batch(SAMPLES))
    model.generate(**inputs, max_new_tokens=3, logits_processor=LogitsProcessorList([base]))
    assert torch.equal(logits[False][1], base.logits[1])
    assert not torch.equal(logits[True][1], base.logits[1])
    assert not torch.equal(logits[False][2], base.logits[2])
    assert torch.equal(logits[False][2], logits[True][2])


def test_learning_rate_scales_the_first_step(model):
    """Adam's first step is the rate itself, in units, where the gradient is not next to nothing; SGD's is linear."""
    small, large = (turns(run(model, count=2, optimizer="adam", learning_rate=rate)) for rate in (0.01, 0.03))
    assert torch.allclose(large, 3 * small, rtol=1e-5)
    assert small.abs().median().item() == pytest.approx(0.01, rel=1e-3)


def test_sgd_follows_the_gradient(model):
    loop = run(model, count=2, optimizer="sgd", learning_rate=2.0)
    for row, trace in enumerate(loop.traces):
        moved = at_video(loop.decoding.steering.shift, loop.decoding.steering.shift.turns, row).norm().item()
        assert moved == pytest.approx(2.0 * trace.grad_norm[1], rel=1e-5)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("optimizer", ["adam", "nsgd"])
def test_a_shift_that_is_not_kept_starts_at_0_at_each_token(model, optimizer, steps):
    """Each token's change is that of a run whose first update it is, and the cache stays as it was."""
    choices = {
        "optimizer": optimizer,
        "steps_per_update": steps,
        "policy": "minimize",
        "keep_shift": False,
        "beta1": 0.9,
    }
    every, late = (run(model, count=9, update_every=n, **choices) for n in (1, 9))
    for ours, theirs in zip(every.traces, late.traces, strict=True):
        assert ours.entropy_change[8] == theirs.entropy_change[8] != 0
        assert ours.shift[8] == theirs.shift[8] > 0
        assert (theirs.shift[:8] == 0).all()
        assert np.array_equal(ours.entropy, theirs.entropy)
    shift = every.decoding.steering.shift
    assert torch.equal(packed(shift, every.decoding.cache.layers[-1].values), packed(shift, shift.original))


def test_ema_decay(model):
    trace = run(model, ema_decay=0.25).traces[0]
    assert trace.ema[0] == pytest.approx(0.75 * trace.entropy[0], rel=1e-6)
    assert trace.ema[1] == pytest.approx(0.25 * trace.ema[0] + 0.75 * trace.entropy[1], rel=1e-6)
    corrected = run(model, ema_decay=0.25, ema_correction=True).traces[0]
    weights = 0.25 ** np.arange(3)[::-1]
    assert corrected.ema[0] == pytest.approx(corrected.entropy[0], rel=1e-6)
    assert corrected.ema[2] == pytest.approx((weights * corrected.entropy[:3]).sum() / weights.sum(), rel=1e-6)
    assert np.array_equal(corrected.peak, np.maximum.accumulate(corrected.ema))


def test_objectives_differ_and_agree_in_sign(model):
    first, other = (run(model, count=2, policy="minimize", objective=name) for name in ("kl_p_u", "kl_u_p"))
    assert not torch.allclose(delta(first), delta(other))
    assert all(loop.traces[0].entropy_change[1] < 0 for loop in (first, other))


def test_steps_per_update(model):
    one, three = (run(model, count=2, policy="minimize", learning_rate=0.01, steps_per_update=n) for n in (1, 3))
    assert three.traces[0].shift[1] > 2 * one.traces[0].shift[1]
    assert three.traces[0].entropy_change[1] < 2 * one.traces[0].entropy_change[1] < 0
    assert (three.traces[0].updates, three.traces[0].grad_norm[1]) == (1, one.traces[0].grad_norm[1])


def test_min_entropy_skips_the_update(model):
    loop = run(model, count=20, min_entropy=2.8)
    for trace in loop.traces:
        due = (np.arange(20) + 1) % 2 == 0
        assert (trace.alpha != 0).tolist() == (due & (trace.entropy >= 2.8)).tolist()
        assert 0 < trace.updates < 10
    quiet = run(model, count=6, min_entropy=20.0)
    assert not delta(quiet).any()
    assert "at an entropy over 20 nats" in quiet.traces[0].note


def test_a_dead_gradient_does_not_move_the_values_on_momentum(model):
    """One update builds momentum; then the model becomes certain (H next to 0), and nothing moves any more."""
    processor = Forced(forced_tokens(2, 12))

    def certain(module, args, logits):
        return logits * 1000 if len(processor.logits) > 2 else logits

    hook = model.lm_head.register_forward_hook(certain)
    try:
        settings = {"logits_processor": LogitsProcessorList([processor])}
        _, loop = steer(
            model,
            VReason(keep_shift=True, optimizer="adam", beta1=0.9),
            **batch(SAMPLES),
            max_new_tokens=12,
            **settings,
        )
    finally:
        hook.remove()
    for trace in loop.traces:
        assert (trace.entropy[3:] < 1e-4).all()
        assert trace.updates == 1
        assert (trace.shift[1:] == trace.shift[1]).all()
        assert trace.shift[1] > 0


def test_head_tail(model):
    """Without a tail it is exact; the more is left out, the further from it. Too few rows: exact as well."""
    first = {"count": 2, "optimizer": "sgd", "learning_rate": 1.0}
    exact = delta(run(model, **first, head_topk=0))

    def error(head_tail, head_topk=96):
        near = delta(run(model, **first, head_topk=head_topk, head_tail=head_tail))
        return ((near - exact).norm() / exact.norm()).item()

    assert error(0.0) < 1e-5
    assert error(0.0, head_topk=5000) < 1e-5
    assert error(0.0) < error(0.01) < error(0.1) < error(0.5)
    assert error(0.01, head_topk=4) == 0


def test_tokens_outside_of_the_head_keep_their_logits(model):
    """Those that take part are the fewest that leave no more probability than the bound."""
    logits = {}
    for name, choices in {"rows": {"head_tail": 0.2}, "off": {"policy": "off"}}.items():
        processor = Forced(forced_tokens(2, 2))
        settings = {"logits_processor": LogitsProcessorList([processor])}
        steer(model, VReason(**choices), **batch(SAMPLES), max_new_tokens=2, **settings)
        logits[name] = processor.logits[1]
    for ours, base in zip(logits["rows"], logits["off"], strict=True):
        probabilities, order = base.softmax(-1).sort(descending=True)
        fewest = int((probabilities.cumsum(0) < 0.8).sum()) + 1
        moved = (ours != base).nonzero().flatten()
        assert set(moved.tolist()) == set(order[:fewest].tolist())


def test_norm_choices_differ(model):
    deltas = [delta(run(model, norm=norm, learning_rate=0.1)) for norm in ("head", "token", "cache", "none")]
    assert not any(torch.equal(a, b) for a, b in combinations(deltas, 2))


@pytest.mark.parametrize(
    ("hyperparameters", "note"),
    [
        ({"policy": "off"}, "the policy is off"),
        ({"learning_rate": 0.0}, "the learning rate is 0"),
        ({"update_every": 50}, "no update was due (every 50 tokens)"),
        ({}, ""),
    ],
)
def test_notes(model, hyperparameters, note):
    trace = run(model, count=4, **hyperparameters).traces[0]
    assert note in trace.note
    assert (trace.note == "") == (trace.updates > 0)
