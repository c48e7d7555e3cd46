"""Entropy and the gradients of the objectives, against numpy and autograd."""

import numpy as np
import pytest
import torch

from lmms_eval_vreason.method.entropy import OBJECTIVE_GRADIENTS, entropy, entropy_of, log_probabilities


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_entropy_of_known_distributions(dtype):
    size = 50
    certain = torch.zeros(size, dtype=dtype)
    certain[3] = 3e4
    masked = torch.zeros(size, dtype=dtype)
    masked[10:] = -torch.inf
    logits = torch.stack([torch.zeros(size, dtype=dtype), certain, masked])
    h = entropy(logits)
    assert h.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.allclose(h, torch.tensor([np.log(size), 0.0, np.log(10)], dtype=h.dtype), atol=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVE_GRADIENTS)
def test_closed_form_gradients(objective):
    """Against autograd on the divergences as ``torch.nn.functional`` writes them."""
    logits = (4 * torch.randn(3, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).requires_grad_()
    log_p, log_u = logits.log_softmax(-1), torch.full((3, 40), 1 / 40, dtype=torch.float64).log()
    ours, other = (log_p, log_u) if objective == "kl_p_u" else (log_u, log_p)
    loss = torch.nn.functional.kl_div(other, ours, log_target=True, reduction="sum")
    (reference,) = torch.autograd.grad(loss, logits)
    log_p = log_probabilities(logits.detach())
    assert torch.allclose(OBJECTIVE_GRADIENTS[objective](log_p, entropy_of(log_p)), reference, atol=1e-12)


def test_gradient_is_finite_where_a_probability_underflows():
    log_p = log_probabilities(torch.tensor([[0.0, -1e4, -torch.inf, 1e4]]))
    for gradient in OBJECTIVE_GRADIENTS.values():
        assert gradient(log_p, entropy_of(log_p)).isfinite().all()
