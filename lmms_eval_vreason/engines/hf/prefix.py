"""Shared prefixes: what several prompts begin with is prefilled once, and each prompt continues from that cache."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel

from lmms_eval_vreason.engines.hf.upstream import CACHE, own_positions
from lmms_eval_vreason.families.family import TOKEN_TYPES, check_columns, family_of, take_token_types
from lmms_eval_vreason.families.positions import check_choice, trained_positions


@dataclass(frozen=True)
class Prefix:
    """A prefilled prompt prefix. It is only read: every prompt that continues it has its own cache.

    Attributes:
        input_ids: (tokens,).
        position_ids: (3, tokens), the multimodal rotary positions; (0, tokens) where positions are plain.
        token_types: (tokens,), ``mm_token_type_ids``; zeros where the processor gives none.
        keys, values: One (1, kv_heads, tokens, head_dim) tensor a layer.
    """

    input_ids: Tensor
    position_ids: Tensor
    token_types: Tensor
    keys: list[Tensor]
    values: list[Tensor]

    @property
    def tokens(self) -> int:
        return len(self.input_ids)


@torch.no_grad()
def prefill(model: Any, inputs: dict[str, Tensor], positions: str = "trained") -> Prefix:
    """Prefills a prompt's prefix, vision tower included. The model's ``rope_deltas`` stay as they were.

    Args:
        inputs: The processor's outputs for one unpadded prompt, (1, tokens), cut where text follows: after the end of
            an image or video.
        positions: As in :func:`~lmms_eval_vreason.engines.hf.generation.generate`.

    Raises:
        TypeError: A layer keeps no tokens that a prompt could continue from.
    """
    check_columns(model, "a shared prefix")
    inputs = {name: value for name, value in inputs.items() if name != "attention_mask"}
    family, ids, types = family_of(model), inputs["input_ids"], take_token_types(model, inputs)
    if check_choice(positions) == "trained" and family.positions == "trained":
        position_ids = trained_positions(model.config, **inputs)[1:]
    else:
        position_ids = own_positions(model, inputs) if family.multimodal else ids.new_empty(0, *ids.shape)
    placed = {"position_ids": position_ids} if family.multimodal else {}
    cache: Any = DynamicCache(config=model.config.get_text_config(decoder=True))
    model(**inputs, **placed, **{CACHE: cache}, use_cache=True, logits_to_keep=1)
    keys, values = [layer.keys for layer in cache.layers], [layer.values for layer in cache.layers]
    return Prefix(ids[0], position_ids[:, 0], (torch.zeros_like(ids) if types is None else types)[0], keys, values)


def prefix_bytes(model: PreTrainedModel, tokens: int) -> int:
    """Bytes that the keys and values of a prefix take."""
    config = model.config.get_text_config(decoder=True)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * tokens
    return int(numbers) * model.dtype.itemsize


def continued(model: PreTrainedModel, prefixes: Sequence[Prefix | None], suffixes: Sequence[Tensor]) -> dict[str, Any]:
    """Keyword arguments of ``generate`` for a batch of prompts that continue their prefixes.

    A row is [padding][prefix][padding][suffix], so that all suffixes begin in one column and the prefixes' caches end
    there. Padding is masked, in the cache as well, and repeats the row's first token: what looks at the whole prompt (a
    repetition penalty) sees no token that the prompt does not hold. Positions are those of the prompt without padding.

    Args:
        prefixes: One a prompt; None for a prompt that is all suffix. The same object for prompts that share it.
        suffixes: (tokens,) each, at least one token, text only.

    Returns:
        input_ids, attention_mask (batch, tokens), position_ids (4, batch, tokens), or (batch, tokens) where positions
        are plain, the cache, which holds the prefixes' columns, and mm_token_type_ids where the family needs them.
    """
    if not all(len(suffix) for suffix in suffixes):
        raise ValueError("a prompt ends with its shared prefix: at least one token must follow it")
    family = family_of(model)
    before, after, axes = [], [], 3 if family.multimodal else 0
    for prefix, suffix in zip(prefixes, suffixes, strict=True):
        positions = torch.arange(len(suffix), device=suffix.device).expand(axes, -1)
        text = torch.zeros_like(suffix)
        if prefix is None:
            before.append(_columns(suffix[:0], text[:0], positions[:, :0]))
        else:
            before.append(_columns(prefix.input_ids, prefix.token_types, prefix.position_ids))
            positions = positions + prefix.position_ids[:, -1:] + 1
        after.append(_columns(suffix, text, positions))
    sides = [pad_sequence(rows, batch_first=True, padding_side="left") for rows in (before, after)]
    input_ids, attention_mask, types, *position_ids = torch.cat(sides, dim=1).movedim(2, 0).contiguous()
    first = input_ids.gather(1, attention_mask.argmax(dim=1, keepdim=True))
    text_positions = (attention_mask.cumsum(dim=1) - 1) * attention_mask
    positions = torch.stack([text_positions, *position_ids])
    return {
        "input_ids": torch.where(attention_mask.bool(), input_ids, first),
        "attention_mask": attention_mask,
        "position_ids": positions if axes else text_positions,
        CACHE: _cache(model, prefixes, sides[0].shape[1]),
        **({} if family.own_video_token else {TOKEN_TYPES: types}),
    }


def _columns(input_ids: Tensor, token_types: Tensor, position_ids: Tensor) -> Tensor:
    """(tokens, 3 + axes) from (tokens,) twice and (axes, tokens): id, a 1 in the attention mask, type, positions."""
    return torch.stack([input_ids, torch.ones_like(input_ids), token_types, *position_ids], dim=1)


def _cache(model: PreTrainedModel, prefixes: Sequence[Prefix | None], longest: int) -> DynamicCache:
    cache: Any = DynamicCache(config=model.config.get_text_config(decoder=True))
    for index, layer in enumerate(cache.layers if longest else ()):
        keys = _rows([None if prefix is None else prefix.keys[index] for prefix in prefixes], longest)
        values = _rows([None if prefix is None else prefix.values[index] for prefix in prefixes], longest)
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
    filled: DynamicCache = cache
    return filled


def _rows(states: Sequence[Tensor | None], longest: int) -> Tensor:
    """(batch, kv_heads, longest, head_dim), padded on the left with zeros."""
    first = next(state for state in states if state is not None)
    if all(state is first for state in states):
        # Not copied: a dynamic layer never writes into what it was given, it joins the suffix to it in a new tensor.
        return first.expand(len(states), -1, -1, -1)
    empty = first[:, :, :0]
    rows = [empty if state is None else state for state in states]
    return torch.cat([nn.functional.pad(row, (0, 0, longest - row.shape[2], 0)) for row in rows])
