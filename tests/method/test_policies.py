"""The entropy's average and peak, and the policies, against numpy written from the paper."""

import numpy as np
import pytest
import torch
from random_model import forced_run, prompt, random_model

from lmms_eval_vreason import VReason
from lmms_eval_vreason.method.policies import coins, moving_average, weight_of

SAMPLES = [prompt(seed=1), prompt(seed=2, videos=((2, 4, 6),), text=11), prompt(seed=3, text=3)]


@pytest.fixture(scope="module")
def model():
    return random_model()


def run(model, method, count=40, samples=SAMPLES):
    return forced_run(model, method, samples, count).traces


def paper_switch(h, decay):
    """H_ema from 0, its running peak, and α = -1 under the peak, else +1; float32 as in the loop."""
    decay, rest = np.float32(decay), np.float32(1.0 - decay)
    ema, peak, rows = np.float32(0), np.float32(0), []
    for value in h:
        ema = decay * ema + rest * value
        peak = max(peak, ema)
        rows.append((ema, peak, -1.0 if ema < peak else 1.0))
    return (np.array(column, dtype="float32") for column in zip(*rows, strict=True))


@pytest.mark.parametrize("decay", [0.98, 0.5, 0.0])
@pytest.mark.parametrize("update_every", [1, 3])
def test_switch_follows_the_paper(model, decay, update_every):
    traces = run(model, VReason(ema_decay=decay, update_every=update_every))
    seen = set()
    for trace in traces:
        ema, peak, alpha = paper_switch(trace.entropy, decay)
        assert np.allclose(trace.ema, ema, rtol=1e-6)
        assert np.allclose(trace.peak, peak, rtol=1e-6)
        due = np.array([step > 0 and (step + 1) % update_every == 0 for step in range(40)])
        clear = np.isclose(ema, peak, rtol=1e-6) == (ema == peak)
        assert (trace.alpha[due & clear] == alpha[due & clear]).all()
        assert (trace.alpha[~due] == 0).all()
        assert trace.updates == due.sum()
        assert trace.peak_index == ema.argmax()
        seen |= set(trace.alpha[due].tolist())
    assert decay == 0.98 or seen == {-1.0, 1.0}


@pytest.mark.parametrize(("policy", "alpha"), [("minimize", -1.0), ("maximize", 1.0)])
def test_fixed_policies(model, policy, alpha):
    for trace in run(model, VReason(policy=policy), count=6):
        assert trace.alpha.tolist() == [0.0, alpha] * 3


def test_random_policy_is_seeded(model):
    method = VReason(policy="random", update_every=1, seed=3)
    first, again = run(model, method), run(model, method)
    other = run(model, VReason(policy="random", update_every=1, seed=4))
    coins = first[0].alpha[1:]
    assert np.array_equal(coins, again[0].alpha[1:])
    assert not np.array_equal(coins, other[0].alpha[1:])
    assert 10 <= (coins > 0).sum() <= 29
    assert set(coins.tolist()) == {-1.0, 1.0}


def test_random_policy_does_not_depend_on_the_batch(model):
    method = VReason(policy="random", update_every=1, seed=3)
    together, alone = run(model, method, count=12), run(model, method, count=12, samples=SAMPLES[2:])
    assert np.array_equal(together[2].alpha, alone[0].alpha)


def test_random_policy_leaves_the_global_generator_alone(model):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    run(model, VReason(policy="random", prune_ratio=0.5, prune_score="random"), count=4)
    assert torch.equal(torch.rand(1), expected)


def test_average_ignores_an_entropy_that_is_not_finite():
    ema = peak = torch.zeros(2)
    ema, peak = moving_average(ema, peak, torch.tensor([1.0, 2.0]), 0.5)
    ema, peak = moving_average(ema, peak, torch.tensor([torch.nan, 4.0]), 0.5)
    assert ema.tolist() == peak.tolist() == [0.5, 2.5]
    assert moving_average(ema, peak, torch.tensor([0.0, torch.inf]), 0.5)[1].tolist() == [0.5, 2.5]
    assert moving_average(ema, peak, torch.ones(2, dtype=torch.float64), 0.5)[0].dtype == torch.float32


def test_the_weights_of_the_average():
    """β = 0.75: a quarter each, or, corrected, as they make the average of equal entropies that entropy."""
    assert [weight_of(token, 0.75, False) for token in range(3)] == [0.25] * 3
    corrected = [weight_of(token, 0.75, True) for token in range(3)]
    assert corrected == pytest.approx([1, 0.25 / (1 - 0.75**2), 0.25 / (1 - 0.75**3)])


def test_coins_are_fair_and_seeded():
    first = coins(1000, 1)
    assert set(first) == {-1.0, 1.0}
    assert abs(sum(first)) < 100
    assert first == coins(1000, 1) != coins(1000, 2)
