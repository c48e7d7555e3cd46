"""Stochastic rounding to bfloat16: unbiased, and no step is lost, however small."""

import pytest
import torch

from lmms_eval_vreason import VReason
from lmms_eval_vreason.method.rounding import rounded
from lmms_eval_vreason.method.shift import Shift

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
