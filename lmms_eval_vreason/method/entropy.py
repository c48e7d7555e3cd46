"""Entropy of the next-token distribution, and the gradients of the two objectives that move it."""

from collections.abc import Callable

import torch
from torch import Tensor


def log_probabilities(logits: Tensor) -> Tensor:
    """log softmax(logits), in float32 at least, and finite where a probability is 0: 0 · -inf would be nan.

    Args:
        logits: (batch, vocabulary), floating point.
    """
    log_p = torch.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    # exp(-1000) is 0 in float64 as well.
    return log_p.clamp_min_(-1000.0)


def entropy_of(log_p: Tensor) -> Tensor:
    """Shannon entropy, H = -Σ p log p (paper), in nats: (batch, vocabulary), from :func:`log_probabilities` → (batch,).

    A token of probability 0 counts as 0.
    """
    return log_p.exp().mul_(log_p).sum(dim=-1).neg_()


def entropy(logits: Tensor) -> Tensor:
    """:func:`entropy_of` softmax(logits): (batch, vocabulary) → (batch,), nats."""
    return entropy_of(log_probabilities(logits))


def _gradient_kl_p_u(log_p: Tensor, h: Tensor) -> Tensor:
    return log_p.exp().mul_(log_p + h[:, None])


def _gradient_kl_u_p(log_p: Tensor, h: Tensor) -> Tensor:
    return log_p.exp().sub_(1.0 / log_p.shape[-1])


# Gradient of the objective with respect to the logits, in closed form, from log p (batch, vocabulary) and H (batch,) →
# (batch, vocabulary). KL(p‖U) = log|V| - H(p), so its gradient is -dH/dlogits = p (log p + H), token by token, also for
# some of the tokens only; KL(U‖p) gives p - 1/|V|.
OBJECTIVE_GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kl_p_u": _gradient_kl_p_u,
    "kl_u_p": _gradient_kl_u_p,
}
