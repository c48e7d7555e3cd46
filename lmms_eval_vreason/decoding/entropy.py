"""Entropy of the next token, its moving average and peak, and the policies that turn them into α."""

from collections.abc import Callable

import torch
from torch import Tensor


def entropy(logits: Tensor) -> Tensor:
    """Shannon entropy of softmax(logits), in nats.

    Args:
        logits: (batch, vocabulary), floating point; computed in float32 at least.

    Returns:
        (batch,) entropies, H = -Σ p log p (paper). A token of probability 0 counts as 0.
    """
    p, log_p = _probabilities(logits)
    return -(p * log_p).sum(dim=-1)


def _probabilities(logits: Tensor) -> tuple[Tensor, Tensor]:
    """p and log p, the latter finite where p is 0: a logit of -inf gives 0 · -inf = nan."""
    log_p = torch.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    # exp(-1000) is 0 in float64 as well.
    log_p = log_p.clamp_min_(-1000.0)
    return log_p.exp(), log_p


def _gradient_kl_p_u(logits: Tensor) -> Tensor:
    p, log_p = _probabilities(logits)
    h = -(p * log_p).sum(dim=-1, keepdim=True)
    return log_p.add_(h).mul_(p)


def _gradient_kl_u_p(logits: Tensor) -> Tensor:
    p = torch.softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    return p - 1.0 / logits.shape[-1]


# Gradient of the objective with respect to the logits, in closed form: (batch, vocabulary) → the same shape.
# KL(p‖U) = log|V| - H(p), so its gradient is -dH/dlogits = p (log p + H); KL(U‖p) gives p - 1/|V|.
OBJECTIVE_GRADIENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "kl_p_u": _gradient_kl_p_u,
    "kl_u_p": _gradient_kl_u_p,
}


def moving_average(ema: Tensor, peak: Tensor, h: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """H_ema ← β H_ema + (1-β) H, then peak ← max(peak, H_ema); all (batch,), nats. Both start at 0 (paper).

    A non-finite entropy leaves both as they are.
    """
    h = h.to(ema.dtype)
    # An entropy is not negative: one comparison tells nan and infinity.
    ema = torch.where(h < torch.inf, ((1.0 - decay) * h).add_(ema, alpha=decay), ema)
    return ema, torch.maximum(peak, ema)


# α of each sample from (ema, peak, coin), all (batch,). With the loss α · KL(p‖U), -1 lowers and +1 raises the entropy.
POLICIES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "switch": lambda ema, peak, coin: torch.where(ema < peak, -1.0, 1.0),
    "minimize": lambda ema, peak, coin: torch.full_like(ema, -1.0),
    "maximize": lambda ema, peak, coin: torch.ones_like(ema),
    "random": lambda ema, peak, coin: coin,
}
