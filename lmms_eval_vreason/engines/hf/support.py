"""Which models and calls of ``generate`` go with the method; others are refused before anything is computed."""

from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from lmms_eval_vreason.families.family import family_of

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


def check_call(model: PreTrainedModel, generation_config: GenerationConfig | None, kwargs: dict[str, Any]) -> None:
    """Refuses what cannot be steered.

    Raises:
        TypeError: A model of no tested family, or one whose last layer or head is of another kind.
        ValueError: A call of ``generate`` that is not one plain decoding loop over one sequence a prompt.
    """
    family_of(model)
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
