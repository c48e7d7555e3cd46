"""The entropy's moving average and its peak, and the policies that turn them into α, the direction of an update."""

from collections.abc import Callable

import torch
from torch import Tensor


def weight_of(token: int, decay: float, correction: bool) -> float:
    """What the ``token``-th entropy (from 0) counts in the moving average: 1-β; with correction (1-β) / (1-βᵗ).

    With it the average is that of Adam's moments: the weights of all tokens so far add up to 1 (ours).
    """
    return (1.0 - decay) / (1.0 - decay ** (token + 1)) if correction else 1.0 - decay


def moving_average(ema: Tensor, peak: Tensor, h: Tensor, weight: Tensor | float) -> tuple[Tensor, Tensor]:
    """H_ema ← (1-w) H_ema + w H, then peak ← max(peak, H_ema); all (batch,), nats. Both start at 0; w = 1-β (paper).

    A non-finite entropy leaves both as they are.
    """
    h = h.to(ema.dtype)
    # An entropy is not negative: one comparison tells nan and infinity.
    ema = torch.where(h < torch.inf, torch.lerp(ema, h, weight), ema)
    return ema, torch.maximum(peak, ema)


# α from (ema, peak, coin), (batch,) each. With the loss α · KL(p‖U), -1 lowers the entropy and +1 raises it.
POLICIES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "switch": lambda ema, peak, coin: (ema >= peak) * 2.0 - 1.0,
    "minimize": lambda ema, peak, coin: torch.full_like(ema, -1.0),
    "maximize": lambda ema, peak, coin: torch.full_like(ema, 1.0),
    "random": lambda ema, peak, coin: coin,
}


def coins(tokens: int, seed: int) -> list[float]:
    """The ``random`` policy's α for each token, a fair coin. The same for every sample, whatever its batch."""
    heads = torch.rand(tokens, generator=torch.Generator().manual_seed(seed)) < 0.5
    return [1.0 if head else -1.0 for head in heads.tolist()]
