"""What the method can run on; anything else is refused with the mend, before it is computed where that is possible."""

from typing import Any

import torch
from transformers import Cache, GenerationConfig, PreTrainedModel, Qwen2_5_VLForConditionalGeneration
from transformers.cache_utils import DynamicLayer, StaticLayer

# Settings of `generate` under which transformers would not hand over a plain decoding loop: name → allowed values.
_PLAIN = {
    "num_beams": (None, 1),
    "num_return_sequences": (None, 1),
    "use_cache": (None, True),
    "return_dict_in_generate": (None, False),
    "prompt_lookup_num_tokens": (None,),
    "penalty_alpha": (None, 0, 0.0),
    "dola_layers": (None,),
    "cache_implementation": (None, "dynamic", "static"),
}
_REFUSED_ARGUMENTS = ("assistant_model", "inputs_embeds", "custom_generate")


def check_model(model: PreTrainedModel, layers: int) -> None:
    """Raises TypeError unless ``model`` is a Qwen2.5-VL model with full attention in every layer, and ValueError if it
    has fewer than ``layers`` of them."""
    if not isinstance(model, Qwen2_5_VLForConditionalGeneration):
        raise TypeError(
            f"V-Reason steers Qwen2_5_VLForConditionalGeneration, not {type(model).__name__}; "
            "load a Qwen2.5-VL checkpoint with that class"
        )
    kinds = set(model.config.text_config.layer_types) - {"full_attention"}
    if kinds:
        raise TypeError(
            f"V-Reason needs full attention in every layer, the model has {', '.join(sorted(kinds))} layers"
        )
    depth = model.config.text_config.num_hidden_layers
    if layers > depth:
        raise ValueError(f"layers={layers} is more than the model's {depth} decoder layers")


def check_call(model: PreTrainedModel, generation_config: GenerationConfig | None, kwargs: dict[str, Any]) -> None:
    """Raises ValueError for a call of ``generate`` that is not one plain decoding loop over one sequence a prompt."""
    if torch.is_inference_mode_enabled():
        raise ValueError("V-Reason takes gradients: call it under torch.no_grad() instead of torch.inference_mode()")
    for name in _REFUSED_ARGUMENTS:
        if kwargs.get(name) is not None:
            raise ValueError(f"{name} does not go with V-Reason: leave it out")
    for name, allowed in _PLAIN.items():
        config = model.generation_config if generation_config is None else generation_config
        value = kwargs.get(name, getattr(config, name, None))
        if value not in allowed:
            hint = " or ".join(repr(choice) for choice in allowed if choice is not None) or "None"
            raise ValueError(f"{name}={value!r} does not go with V-Reason: set it to {hint}")


def check_cache(cache: Cache | None) -> None:
    """Raises ValueError unless every layer of ``cache`` is a plain dynamic or static one that stays on its device."""
    if cache is None:
        raise ValueError("V-Reason steers the value cache, but the model returned none: set use_cache=True")
    if cache.offloading:
        raise ValueError("V-Reason cannot steer an offloaded cache: use cache_implementation='dynamic' or 'static'")
    for layer in cache.layers:
        if type(layer) not in (DynamicLayer, StaticLayer):
            raise ValueError(
                f"V-Reason cannot steer a cache layer of type {type(layer).__name__} (sliding, quantised or custom): "
                "use cache_implementation='dynamic' or 'static'"
            )
