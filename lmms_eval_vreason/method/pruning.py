"""Lite: after prefill, the video tokens with the lowest scores leave all layers' caches (paper: half of them)."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import Cache


def _norm(states: Tensor) -> Tensor:
    return torch.linalg.vector_norm(states, dim=(1, 3), dtype=torch.float32)


def _random(cache: Cache, video_mask: Tensor, seed: int) -> Tensor:
    # Drawn per sample over its own video tokens, so that neither the batch nor its padding changes the draw.
    scores = torch.zeros(video_mask.shape)
    for row, mask in zip(scores, video_mask.cpu(), strict=True):
        row[mask] = torch.rand(int(mask.sum()), generator=torch.Generator().manual_seed(seed))
    return scores.to(video_mask.device)


# The score of each cached token, (batch, tokens) float32: the lowest go. Keys and values are
# (batch, kv_heads, tokens, head_dim), layer by layer. The paper says "norm"; which one is ours.
SCORES: dict[str, Callable[[Cache, Tensor, int], Tensor]] = {
    "value_norm": lambda cache, video_mask, seed: _norm(cache.layers[-1].values),
    "key_norm": lambda cache, video_mask, seed: _norm(cache.layers[-1].keys),
    "mean_value_norm": lambda cache, video_mask, seed: torch.stack(
        [_norm(layer.values).to(video_mask.device) for layer in cache.layers]
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


def prune_video_tokens(
    cache: Cache, video_mask: Tensor, attention_mask: Tensor | None, ratio: float, score: str, seed: int
) -> tuple[Tensor, Tensor | None]:
    """Drops video tokens from every layer of ``cache``, in place; what stays keeps its order and its positions.

    Keys were rotated by their positions before they were cached, so a token's position survives its neighbours' loss.
    Samples that keep fewer tokens are padded on the left and masked.

    Args:
        cache: A prefilled cache of dynamic or static layers.
        video_mask: (batch, tokens) bool.
        attention_mask: (batch, tokens) or None where nothing is padded.
        ratio, score, seed: As in :class:`~lmms_eval_vreason.method.config.VReason`.

    Returns:
        The new video mask and attention mask, (batch, kept); the latter is None where nothing is padded.
    """
    present = torch.ones_like(video_mask) if attention_mask is None else attention_mask.bool()
    scores = SCORES[score](cache, video_mask, seed).to(video_mask.device)[:, : video_mask.shape[1]]
    kept = kept_tokens(scores, video_mask, present, ratio)
    length = int(kept.sum(dim=1).max())
    # A stable sort of the kept flags moves what goes to the left and keeps the order of what stays.
    index = kept.long().argsort(dim=1, stable=True)[:, -length:]
    for layer in cache.layers:
        _gather(layer, index)
    padding = kept.gather(1, index)
    return video_mask.gather(1, index) & padding, None if bool(padding.all()) else padding.long()


def _gather(layer, index: Tensor) -> None:
    index = index.to(layer.values.device)[:, None, :, None]
    length = index.shape[2]
    for name in ("keys", "values"):
        states = getattr(layer, name)
        chosen = states.gather(2, index.expand(-1, states.shape[1], -1, states.shape[3]))
        if layer.get_max_length() > 0:
            states[:, :, :length] = chosen
            states[:, :, length:] = 0
        else:
            setattr(layer, name, chosen)
    if layer.get_max_length() > 0:
        layer.cumulative_length.fill_(length)
