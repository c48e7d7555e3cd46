"""The norm that an update keeps, and the gradient through it, against autograd."""

import pytest
import torch
from random_model import moved_at_its_norm

from lmms_eval_vreason import VReason
from lmms_eval_vreason.method.norm import KeptNorm
from lmms_eval_vreason.method.shift import Shift


@pytest.mark.parametrize("norm", ["head", "token", "cache", "none"])
def test_update_through_the_norm(norm):
    """V_new and the closed form of its gradient against autograd, at a large ΔV."""
    generator = torch.Generator().manual_seed(0)
    values, delta, weight = (torch.randn(7, 2, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    delta.requires_grad_()
    moved = moved_at_its_norm(values, delta, norm)
    (reference,) = torch.autograd.grad((moved * weight).sum(), delta)
    values, delta, weight = (x.detach().transpose(0, 1)[None] for x in (values, delta, weight))
    kept = KeptNorm(values, torch.ones(1, 1, 7, 1, dtype=torch.bool), norm)
    ours, gradient = kept.moved(values + delta), kept.gradient(values + delta, weight)
    assert torch.allclose(ours[0].transpose(0, 1), moved.detach(), rtol=1e-12)
    assert torch.allclose(gradient[0].transpose(0, 1), reference, rtol=1e-10)


@pytest.mark.parametrize("norm", ["head", "token", "cache", "none"])
def test_values_of_zero_norm_stay_zero(norm):
    values, everywhere = torch.zeros(1, 2, 4, 8), torch.tensor([True])
    shift = Shift(values, torch.ones(1, 4, dtype=torch.bool), VReason(learning_rate=0.1, norm=norm))
    gradient = shift.gradient(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 8))
    shift.step(gradient, everywhere)
    assert not shift.moved().any()
