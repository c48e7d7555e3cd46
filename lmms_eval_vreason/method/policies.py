"""The entropy's moving average and its peak, and the policies that turn them into α, the direction of an update."""

from collections.abc import Callable

import torch
from torch import Tensor


def moving_average(ema: Tensor, peak: Tensor, h: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """H_ema ← β H_ema + (1-β) H, then peak ← max(peak, H_ema); all (batch,), nats. Both start at 0 (paper).

    A non-finite entropy leaves both as they are.
    """
    h = h.to(ema.dtype)
    # An entropy is not negative: one comparison tells nan and infinity.
    ema = torch.where(h < torch.inf, torch.lerp(ema, h, 1.0 - decay), ema)
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
