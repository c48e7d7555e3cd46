"""Lite: after the prefill the video tokens with the lowest scores leave the cache (paper: half of them)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# One layer's (keys, values), (batch, kv_heads, tokens, head_dim) each.
States = tuple[Tensor, Tensor]


def _norm(states: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(states, dim=(1, 3), dtype=torch.promote_types(states.dtype, torch.float32))
    return norms


def _random(layers: Sequence[States], video_mask: Tensor, seed: int) -> Tensor:
    # Drawn per sample over its own video tokens, so that neither the batch nor its padding changes the draw.
    scores = torch.zeros(video_mask.shape)
    for row, mask in zip(scores, video_mask.cpu(), strict=True):
        row[mask] = torch.rand(int(mask.sum()), generator=torch.Generator().manual_seed(seed))
    return scores.to(video_mask.device)


# The score of each cached token, (batch, tokens), from the layers' states, the video mask and a seed: the lowest go.
# The paper says "norm"; which one is ours.
SCORES: dict[str, Callable[[Sequence[States], Tensor, int], Tensor]] = {
    "value_norm": lambda layers, video_mask, seed: _norm(layers[-1][1]),
    "key_norm": lambda layers, video_mask, seed: _norm(layers[-1][0]),
    "mean_value_norm": lambda layers, video_mask, seed: torch.stack(
        [_norm(values).to(video_mask.device) for _, values in layers]
    ).mean(dim=0),
    "random": _random,
}


def kept_tokens(scores: Tensor, video_mask: Tensor, present: Tensor, ratio: float) -> Tensor:
    """Which cached tokens stay: all but each sample's ⌊ratio · video tokens⌋ lowest-scored video tokens.

    Args:
        scores: (batch, tokens).
        video_mask, present: (batch, tokens) bool, the video tokens; the tokens that are not padding.
        ratio: Share of the video tokens to drop, in [0, 1).

    Returns:
        (batch, tokens) bool.
    """
    drop = (video_mask.sum(dim=1, keepdim=True) * ratio).long()
    order = scores.masked_fill(~video_mask, torch.inf).argsort(dim=1, stable=True)
    rank = order.argsort(dim=1)
    return present & ~((rank < drop) & video_mask)
