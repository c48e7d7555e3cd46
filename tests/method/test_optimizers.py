"""The optimisers: each sample has its own, and one that is idle keeps its state."""

import pytest
import torch

from lmms_eval_vreason import VReason
from lmms_eval_vreason.method.shift import Shift


def one_shift(**choices):
    values = torch.randn(2, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    return Shift(
        values, torch.ones(2, 5, dtype=torch.bool), VReason(**{"learning_rate": 0.01, "optimizer": "adam", **choices})
    )


@pytest.mark.parametrize("betas", [(0.0, 0.999), (0.9, 0.999), (0.5, 0.0)])
def test_adam_is_torch_adam(betas):
    """Against torch.optim.Adam, one optimiser a sample, the second sample idle at some steps."""
    shift = one_shift(beta1=betas[0], beta2=betas[1])
    references = [torch.zeros(2, 5, 8, requires_grad=True) for _ in range(2)]
    optimizers = [torch.optim.Adam([reference], lr=0.01, betas=betas) for reference in references]
    generator = torch.Generator().manual_seed(1)
    for step in range(7):
        gradient = torch.randn(2, 2, 5, 8, generator=generator)
        active = [True, step % 3 != 1]
        gradient[1] *= active[1]
        shift.step(gradient, torch.tensor(active))
        for row, (reference, optimizer) in enumerate(zip(references, optimizers, strict=True)):
            if active[row]:
                reference.grad = gradient[row]
                optimizer.step()
    for row, reference in enumerate(references):
        assert torch.allclose(shift.turns[row], reference, atol=1e-7)


@pytest.mark.parametrize(("dtype", "exact"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_nsgd_takes_a_step_of_one_length_along_the_gradient(dtype, exact):
    """Its RMS over a sample's video is the rate, whatever the gradient's size and however short its video."""
    values = torch.randn(2, 2, 5, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    video = torch.tensor([[True] * 5, [False, True, True, False, False]])
    shift = Shift(values, video, VReason(optimizer="nsgd", learning_rate=0.3))
    gradient = torch.randn(2, 2, 5, 8, generator=torch.Generator().manual_seed(1)).to(dtype) * video[:, None, :, None]
    shift.step(gradient * torch.tensor([1e-6, 1e3])[:, None, None, None], torch.tensor([True, True]))
    for row in range(2):
        steps, along = shift.turns[row][:, video[row]], -gradient[row][:, video[row]]
        assert steps.square().mean().sqrt().item() == pytest.approx(0.3, rel=exact)
        assert torch.cosine_similarity(steps.flatten(), along.flatten(), dim=0).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "nsgd"])
def test_an_inactive_sample_keeps_its_state_to_the_bit(optimizer):
    # A rate at which a step of no direction would be infinitely long.
    shift = one_shift(optimizer=optimizer, beta1=0.5, learning_rate=1000.0)
    gradient = torch.randn(2, 2, 5, 8, generator=torch.Generator().manual_seed(1))
    shift.step(gradient, torch.tensor([True, True]))
    before = [tensor[1].clone() for tensor in (shift.turns, *shift.optimizer.state())]
    first = shift.turns[0].clone()
    gradient[1] = 0
    shift.step(gradient, torch.tensor([True, False]))
    for tensor, was in zip((shift.turns, *shift.optimizer.state()), before, strict=True):
        assert torch.equal(tensor[1], was)
    assert not torch.equal(shift.turns[0], first)
