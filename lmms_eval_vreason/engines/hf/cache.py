"""Caches: which ones can be steered, static ones for compiled steps, and Lite's pruning of all layers."""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel, StaticCache
from transformers.cache_utils import DynamicLayer, StaticLayer

from lmms_eval_vreason.method.config import VReason
from lmms_eval_vreason.method.pruning import SCORES, kept_tokens

# A static cache grows in steps of this many tokens, so that prompts of many lengths share one compiled graph.
CACHE_STEP = 1024


def check_cache(cache: Cache | None, *, pruned: bool) -> None:
    """Raises ValueError unless the last layer of ``cache`` is a plain dynamic or static one that stays on its device.

    Args:
        pruned: Whether tokens are to be dropped from every layer: then each has to be of this kind.
    """
    if cache is None:
        raise ValueError("V-Reason steers the value cache, but the model returned none: set use_cache=True")
    if cache.offloading:
        raise ValueError("V-Reason cannot steer an offloaded cache: use cache_implementation='dynamic' or 'static'")
    for layer in cache.layers if pruned else cache.layers[-1:]:
        if type(layer) not in (DynamicLayer, StaticLayer):
            raise ValueError(
                f"V-Reason cannot steer a cache layer of type {type(layer).__name__} (sliding, quantised or custom): "
                "use cache_implementation='dynamic' or 'static'"
            )


def static_cache(model: PreTrainedModel, tokens: int) -> StaticCache:
    """A static cache for at least ``tokens`` positions."""
    length = -(-tokens // CACHE_STEP) * CACHE_STEP
    return StaticCache(config=model.config.get_text_config(decoder=True), max_cache_len=length)


def copy_cache(source: Any, target: Cache) -> Cache:
    """Writes what ``source`` holds into ``target``, an empty cache of any kind (a static one for compiled steps)."""
    for index, layer in enumerate(source.layers):
        if layer.get_seq_length():
            target.update(layer.keys, layer.values, index)
    return target


def prune_video_tokens(
    cache: Any, video_mask: Tensor, attention_mask: Tensor | None, method: VReason
) -> tuple[Tensor, Tensor | None]:
    """Drops video tokens from every layer of ``cache``, in place; what stays keeps its order and its positions.

    Keys were rotated by their positions before they were cached, so a token's position survives its neighbours' loss.
    Samples that keep fewer tokens are padded on the left and masked.

    Args:
        cache: A prefilled cache of dynamic or static layers.
        video_mask: (batch, tokens) bool.
        attention_mask: (batch, tokens) or None where nothing is padded.

    Returns:
        The new video mask and attention mask, (batch, kept); the latter is None where nothing is padded.
    """
    present = torch.ones_like(video_mask) if attention_mask is None else attention_mask.bool()
    states = [(layer.keys, layer.values) for layer in cache.layers]
    scores = SCORES[method.prune_score](states, video_mask, method.seed).to(video_mask.device)
    kept = kept_tokens(scores[:, : video_mask.shape[1]], video_mask, present, method.prune_ratio)
    length = int(kept.sum(dim=1).max())
    # A stable sort of the kept flags moves what goes to the left and keeps the order of what stays.
    index = kept.long().argsort(dim=1, stable=True)[:, -length:]
    # Or all old layers would live on until the last one is replaced.
    del states
    for layer in cache.layers:
        _gather(layer, index)
    present = kept.gather(1, index)
    return video_mask.gather(1, index) & present, None if bool(present.all()) else present.long()


def _gather(layer: Any, index: Tensor) -> None:
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
