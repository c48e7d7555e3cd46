"""ΔV in a half-precision cache: a step of a useful size arrives there, and nothing else moves."""

import pytest
import torch

from lmms_eval_vreason import VReason
from lmms_eval_vreason.method.shift import Shift


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.1, 1.0, 50.0])
@pytest.mark.parametrize(("rate", "least"), [(0.3, 0.999), (0.01, 0.97)])
def test_a_step_arrives_in_the_cache_whatever_its_scale(dtype, scale, rate, least):
    """The share of V_new - V, rounded to nearest, that is along the exact one."""
    generator = torch.Generator().manual_seed(0)
    values = (scale * torch.randn(2, 2, 300, 16, generator=generator)).to(dtype)
    shift = Shift(values, torch.ones(2, 300, dtype=torch.bool), VReason(learning_rate=rate))
    shift.step(torch.randn(2, 2, 300, 16, generator=generator), torch.tensor([True, True]))
    was = shift.original.double()
    wanted = shift.norm.moved(shift.original + shift.delta).double() - was
    got = shift.moved().double() - was
    assert shift.moved().dtype == dtype
    assert least <= (got * wanted).sum() / wanted.square().sum() <= 2 - least


def test_values_without_a_step_are_written_to_the_bit():
    values = torch.randn(2, 2, 50, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    shift = Shift(values, torch.ones(2, 50, dtype=torch.bool), VReason())
    active = torch.tensor([True, False])
    shift.step(torch.ones(2, 2, 50, 16) * active[:, None, None, None], active)
    moved = shift.moved()
    assert torch.equal(moved[1], values[1])
    assert not torch.equal(moved[0], values[0])
