"""Kernels that torch keeps private. Seen in torch 2.11 to 2.14."""

import torch
from torch import Tensor


def scaled_rows(rows: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """(each row at the norm that ``length`` (rows, 1) gives it; the rows' own norms).

    That is weight normalisation (Salimans & Kingma, 2016). A row whose norm is its ``length`` stays as it is, to the
    bit.
    """
    scaled: tuple[Tensor, Tensor] = torch._weight_norm_interface(rows, length)
    return scaled


def scaled_rows_gradient(gradient: Tensor, rows: Tensor, length: Tensor) -> Tensor:
    """The gradient in ``rows`` from that in the scaled ones: (length / norm) (I - u uᵀ) gradient, u = row / norm."""
    backward = torch.ops.aten._weight_norm_interface_backward.default
    norms = scaled_rows(rows, length)[1]
    in_rows: Tensor = backward(gradient, rows, length, norms, 0)[0]
    return in_rows
