"""bfloat16 and float16 caches: the update reaches them, also where it is smaller than their spacing."""

import pytest
import torch
from random_model import Forced, batch, forced_tokens, packed, prompt, random_model, steer
from transformers import LogitsProcessorList

from lmms_eval_vreason import VReason
from lmms_eval_vreason.engines.hf.seam import Seam
from lmms_eval_vreason.method.rounding import rounded
from lmms_eval_vreason.method.shift import Shift

SAMPLES = [prompt(seed=1), prompt(seed=2, videos=((2, 4, 6),), text=11)]
BOTH = torch.tensor([True, True])


def one_step(scale, rounding, dtype=torch.bfloat16, steps=1):
    """The share of V_new - V that arrives in a cache of values of this scale, after ``steps`` steps of Adam."""
    generator = torch.Generator().manual_seed(0)
    values = (scale * torch.randn(2, 2, 300, 16, generator=generator)).to(dtype)
    method = VReason(rounding=rounding, learning_rate=0.01 / scale)
    shift = Shift(values, torch.ones(2, 300, dtype=torch.bool), method)
    gradient = torch.randn(2, 2, 300, 16, generator=generator)
    for _ in range(steps):
        shift.step(gradient, BOTH)
    was = shift.original.double()
    wanted = shift.norm.moved(shift.original + shift.delta).double() - was
    got = shift.moved().double() - was
    return ((got * wanted).sum() / wanted.square().sum()).item(), (got != 0).double().mean().item()


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0, 50.0])
def test_stochastic_rounding_keeps_even_the_first_step(scale):
    share, _ = one_step(scale, "stochastic")
    assert share == pytest.approx(1.0, abs=0.04)


def test_nearest_rounding_loses_small_steps_until_they_add_up():
    """Why ``stochastic`` is the default: at values of 50 a step of 0.01 never survives rounding to nearest."""
    assert one_step(1.0, "nearest")[0] == pytest.approx(1.0, abs=0.02)
    assert one_step(50.0, "nearest")[0] < 0.15
    assert one_step(50.0, "nearest", steps=60)[0] > 0.9
    assert one_step(5.0, "nearest", dtype=torch.float16)[0] == pytest.approx(1.0, abs=0.02)


def test_rounding_is_between_the_neighbours_and_unbiased():
    values = torch.tensor([1.0, -1.0, 4.007, -4.007, 0.0, 3e-39, 2.5e38])
    spread = torch.stack([rounded(values, torch.tensor(n, dtype=torch.int32)).float() for n in range(0, 1 << 16, 64)])
    assert (spread[:, [0, 1, 4]] == values[[0, 1, 4]]).all()
    assert set(spread[:, 2].tolist()) == {4.0, 4.03125}
    assert torch.allclose(spread.double().mean(0), values.double(), rtol=1e-4)
    assert rounded(values, torch.tensor(0, dtype=torch.int32)).dtype == torch.bfloat16


def test_values_without_a_step_are_written_to_the_bit():
    values = torch.randn(2, 2, 50, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    shift = Shift(values, torch.ones(2, 50, dtype=torch.bool), VReason())
    active = torch.tensor([True, False])
    shift.step(torch.ones(2, 2, 50, 16) * active[:, None, None, None], active)
    moved = shift.moved()
    assert torch.equal(moved[1], values[1])
    assert not torch.equal(moved[0], values[0])


def test_noise_does_not_depend_on_the_batch_or_its_padding():
    generator = torch.Generator().manual_seed(0)
    sample = (5 * torch.randn(1, 2, 40, 16, generator=generator)).bfloat16()
    gradient = torch.randn(1, 2, 40, 16, generator=generator)
    written = []
    for pad, other in ((0, 0), (9, 1)):
        values, moves = (
            torch.nn.functional.pad(x, (0, 0, pad, 0)).repeat(1 + other, 1, 1, 1) for x in (sample, gradient)
        )
        mask = torch.ones(1 + other, pad + 40, dtype=torch.bool)
        # The other sample's video begins earlier.
        mask[-1, :pad] = False
        shift = Shift(values, mask, VReason(seed=3))
        for _ in range(3):
            shift.step(moves, mask[:, -1])
            moved = shift.moved()
        written.append(moved[-1, :, pad:])
    assert torch.equal(*written)


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_the_update_reaches_the_cache_of_a_model(dtype, rounding, cache):
    model, tokens = random_model(dtype=dtype), forced_tokens(2, 8)
    settings = {"max_new_tokens": 8, "cache_implementation": cache}
    _, loop = steer(
        model,
        VReason(rounding=rounding, policy="minimize"),
        **batch(SAMPLES, dtype),
        **settings,
        logits_processor=LogitsProcessorList([Forced(tokens)]),
    )
    shift, layer = loop.decoding.steering.shift, loop.decoding.cache.layers[-1]
    assert (shift.delta.dtype, shift.original.dtype, layer.values.dtype) == (torch.float32, dtype, dtype)
    moved = shift.norm.moved(shift.original + shift.delta)
    was, written, wanted = (packed(shift, x).double() for x in (shift.original, layer.values, moved))
    assert ((written - was) * (wanted - was)).sum() / (wanted - was).square().sum() == pytest.approx(1.0, abs=0.05)
    spacing = torch.finfo(dtype).eps * wanted.abs().clamp_min(1e-3)
    assert ((written - wanted).abs() <= spacing).all()
    # Each value is rounded for itself, so the norm is kept to the spacing of the cache.
    norms = written.norm(dim=-1) / was.norm(dim=-1)
    assert (norms - 1).abs().max() < 2 * torch.finfo(dtype).eps


def test_seed_of_stochastic_rounding():
    model, tokens = random_model(dtype=torch.bfloat16), forced_tokens(2, 6)

    def values(seed):
        settings = {"max_new_tokens": 6, "logits_processor": LogitsProcessorList([Forced(tokens)])}
        _, loop = steer(model, VReason(seed=seed), **batch(SAMPLES, torch.bfloat16), **settings)
        return loop.decoding.cache.layers[-1].values

    assert torch.equal(values(1), values(1))
    assert not torch.equal(values(1), values(2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_what_an_update_adds_to_the_attentions_output_is_not_rounded_away(monkeypatch, dtype, attention):
    """A and its probabilities are float32, more exact than the model's own: an update moves them by less."""
    forward, seen = Seam.forward, []

    def noting(self, inputs):
        result = forward(self, inputs)
        reached = result[0]
        p, exact = reached.attention()
        seen.append((exact, p, p.double() @ reached.values.double()))
        return result

    monkeypatch.setattr(Seam, "forward", noting)
    VReason().generate(random_model(dtype=dtype, attention=attention), **batch(SAMPLES, dtype), max_new_tokens=2)
    ((exact, p, reference),) = seen
    assert exact.dtype == p.dtype == torch.float32
    assert (exact - reference).abs().max() <= 1e-6 * reference.abs().max()
    assert torch.allclose(p.sum(-1), torch.ones(()), atol=1e-6)
