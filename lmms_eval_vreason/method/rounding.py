"""Stochastic rounding to bfloat16: on average it keeps steps that are smaller than the cache's spacing."""

import torch
from torch import Tensor


def rounded(values: Tensor, noise: Tensor) -> Tensor:
    """``values`` (float32) rounded to bfloat16, up or down at random in proportion to the distances.

    Args:
        noise: int32 in [0, 2¹⁶), uniform, in a shape that broadcasts to that of ``values``.

    Returns:
        bfloat16. A value that bfloat16 holds exactly stays.
    """
    # bfloat16 is the upper half of a float32: a carry out of the lower half rounds away from zero.
    bits = values.contiguous().view(torch.int32)
    return ((bits + noise) & -0x10000).view(torch.float32).to(torch.bfloat16)


class Noise:
    """Uniform int32 noise in [0, 2¹⁶), new at each call, from a Weyl sequence over (token, kv_head · head_dim, call).

    A generator would need one draw a sample to keep samples apart; this is three additions and keeps no state but the
    indices. Its multipliers are odd parts of 2¹⁶ over irrational numbers, so that it fills the range evenly.
    """

    def __init__(self, video: Tensor, shape: tuple[int, int], seed: int) -> None:
        """Args: ``video`` (batch, tokens) bool; ``shape`` (kv_heads, head_dim)."""
        # A token's place among its own sample's video tokens: its noise depends on neither the batch nor its padding.
        ordinal = video.cumsum(dim=1, dtype=torch.int32)
        self.tokens = (ordinal * 40503 + seed % 65521 * 7919)[:, None, :, None]
        entries = torch.arange(shape[0] * shape[1], device=video.device, dtype=torch.int32)
        self.entries = (entries * 27145).view(1, shape[0], 1, shape[1])
        self.calls = torch.zeros((), dtype=torch.int32, device=video.device)

    def next(self) -> Tensor:
        """(batch, kv_heads, tokens, head_dim)."""
        self.calls += 51749
        return (self.tokens + self.entries + self.calls) & 0xFFFF
