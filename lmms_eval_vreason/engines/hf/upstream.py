"""What this engine uses of transformers and torch that is private or was renamed. No other file reaches for it.

Read in transformers 5.17.0, 5.20.2 and 5.24.0, and torch 2.11 to 2.14. What is private may change in any release: mend
it here.
"""

import copy
import sys
from contextlib import AbstractContextManager
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig
from transformers.modeling_outputs import BaseModelOutputWithPast

# Models and configs are Any here: what this file reaches for is in no type of theirs.

_CACHE_NAMES = ("cache", "past_key_values")
# What models, their layers and outputs call the cache: `past_key_values` in 5.17 and 5.20, `cache` in 5.24.
CACHE: str = next(name for name in _CACHE_NAMES if name in {field.name for field in fields(BaseModelOutputWithPast)})


def renamed_cache(kwargs: dict[str, Any]) -> dict[str, Any]:
    """A copy of ``kwargs`` in which the cache has this version's name, whichever of both it came under."""
    return {CACHE if name in _CACHE_NAMES else name: value for name, value in kwargs.items()}


def prefill(model: Any, input_ids: Tensor, config: GenerationConfig, model_kwargs: dict[str, Any]) -> Any:
    """The model's forward over the prompt. ``GenerationMixin._prefill``, seen in 5.17, 5.20, 5.24."""
    return model._prefill(input_ids, config, model_kwargs)


def experts_for_decoding(model: Any) -> AbstractContextManager[None]:
    """Within it a mixture's experts run as ``generate`` has them after the prefill, which rounds otherwise on a GPU.

    ``_optimize_model_for_decode``: 5.17, 5.20, 5.24.
    """
    context: AbstractContextManager[None] = model._optimize_model_for_decode()
    return context


def own_positions(model: Any, inputs: dict[str, Any]) -> Tensor:
    """Multimodal positions of unpadded prompts, (3, batch, tokens), as ``generate`` computes them.

    ``_prepare_position_ids_for_generation``, which leaves its ``rope_deltas`` in the model: 5.17, 5.20, 5.24.
    """
    core, ids = model.model, inputs["input_ids"]
    before = getattr(core, "rope_deltas", None)
    positions: Tensor = model._prepare_position_ids_for_generation(
        ids, {"attention_mask": torch.ones_like(ids), **inputs}
    )
    core.rope_deltas = before
    return positions[1:]


def next_model_kwargs(model: Any, cache: Cache, model_kwargs: dict[str, Any]) -> dict[str, Any]:
    """``model_kwargs`` for the token after this one. ``_update_model_kwargs_for_generation``: 5.17, 5.20, 5.24."""
    outputs: Any = BaseModelOutputWithPast
    updated: dict[str, Any] = model._update_model_kwargs_for_generation(outputs(**{CACHE: cache}), model_kwargs)
    return updated


def compiles_by_itself(model: Any, model_kwargs: dict[str, Any], config: GenerationConfig) -> bool:
    """Whether transformers would compile this generation. ``_valid_auto_compile_criteria``: 5.17, 5.20, 5.24."""
    return bool(model._valid_auto_compile_criteria(model_kwargs, config))


def pad_token(config: Any) -> Tensor:
    """The padding token as ``generate`` has prepared it. ``_pad_token_tensor``: 5.17, 5.20, 5.24."""
    token: Tensor = config._pad_token_tensor
    return token


def mark_dynamic(tensor: Tensor, dimension: int) -> None:
    """Tells torch.compile that this size differs from call to call. ``maybe_mark_dynamic``: torch 2.11 to 2.14."""
    torch._dynamo.maybe_mark_dynamic(tensor, dimension)


def renamed_attention(config: Any, name: str) -> Any:
    """A copy of ``config`` under which an attention layer looks up ``name``, and nothing else changes.

    ``_attn_implementation_internal``, which the property ``_attn_implementation`` reads: 5.17, 5.20, 5.24.
    """
    renamed = copy.copy(config)
    renamed._attn_implementation_internal = name
    return renamed


def own_attention(attention: Any) -> Any:
    """The attention function that ``attention`` calls. Every modelling file has both names: 5.17, 5.20, 5.24."""
    module = sys.modules[type(attention).__module__]
    return module.ALL_ATTENTION_FUNCTIONS.get_interface(
        attention.config._attn_implementation, module.eager_attention_forward
    )
