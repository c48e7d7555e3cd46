"""Kernels that torch keeps private. Seen in torch 2.11 to 2.14; what they compute is in the docstrings."""

from collections.abc import Sequence

import torch
from torch import Tensor


def scaled_rows(rows: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """(each row scaled to its ``length``, (rows, 1); the rows' norms). Where both agree a row stays, to the bit."""
    return torch._weight_norm_interface(rows, length)


def scaled_rows_gradient(gradient: Tensor, rows: Tensor, length: Tensor, norms: Tensor) -> Tensor:
    """The gradient in ``rows`` of :func:`scaled_rows`, from that in its result: (length / norm) (I - u uᵀ) gradient."""
    backward = torch.ops.aten._weight_norm_interface_backward.default
    return backward(gradient, rows, length, norms, 0)[0]


def adam_step(
    deltas: Sequence[Tensor],
    gradients: Sequence[Tensor],
    moments: tuple[Sequence[Tensor], Sequence[Tensor]],
    steps: Sequence[Tensor],
    settings: tuple[float, tuple[float, float], float],
) -> None:
    """One step of Adam on each of ``deltas``, in place. ``settings``: learning rate, betas, epsilon.

    ``steps``, a scalar tensor each, count this step already.
    """
    learning_rate, (beta1, beta2), eps = settings
    torch._fused_adam_(
        *(deltas, gradients, *moments, [], steps),
        lr=learning_rate,
        beta1=beta1,
        beta2=beta2,
        weight_decay=0.0,
        eps=eps,
        amsgrad=False,
        maximize=False,
    )
