"""``generate``: ``model.generate`` with the method's loop in the place that ``custom_generate`` leaves for one."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig, PreTrainedModel, StoppingCriteriaList, StopStringCriteria
from transformers.generation.streamers import BaseStreamer

from lmms_eval_vreason.engines.hf.cache import copy_cache, static_cache
from lmms_eval_vreason.engines.hf.loop import DecodingLoop
from lmms_eval_vreason.engines.hf.upstream import CACHE, renamed_cache
from lmms_eval_vreason.families.family import family_of, take_token_types
from lmms_eval_vreason.families.positions import check_choice, trained_positions
from lmms_eval_vreason.method.config import VReason
from lmms_eval_vreason.method.trace import Trace

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


@dataclass(frozen=True)
class Generation:
    """What :func:`generate` returns.

    Attributes:
        sequences: (batch, prompt + generated tokens), as ``model.generate`` returns them.
        traces: One a sample.
    """

    sequences: Tensor
    traces: list[Trace]

    def new_tokens(self, prompt_length: int) -> list[list[int]]:
        """Each sample's generated tokens, the end token included and the padding after it not.

        Args:
            prompt_length: Tokens before the first generated one, padding included.
        """
        rows = zip(self.sequences[:, prompt_length:].tolist(), self.traces, strict=True)
        return [row[: len(trace.entropy)] for row, trace in rows]


def generate(
    model: PreTrainedModel,
    method: VReason,
    *,
    generation_config: GenerationConfig | None = None,
    streamer: BaseStreamer | None = None,
    tokenizer: Any = None,
    generators: Sequence[torch.Generator] | None = None,
    positions: str = "trained",
    **kwargs: Any,
) -> Generation:
    """``model.generate`` under V-Reason, for a batch of any size (left-padded).

    Args:
        model: Of a family in :mod:`lmms_eval_vreason.families.family`. It is left as it was, whatever happens.
        method: The method's hyperparameters.
        generation_config, streamer, **kwargs: As for ``model.generate``: all that the processor gives, token types too.
        tokenizer: Needed with ``stop_strings``.
        generators: One a sample: sampling draws from these instead of torch's global generator, so that a sample's
            tokens do not depend on its neighbours.
        positions: Of text after a video: ``trained`` as Qwen trained it, ``transformers`` as transformers computes it,
            to compare with plain ``model.generate`` token by token. ``position_ids``, if given, win over both.

    Raises:
        ValueError: Beam search, assisted decoding, ``use_cache=False``, several sequences a prompt, a cache whose
            layers cannot be steered, placeholders that disagree with the grids.
        TypeError: ``model`` is of no tested family, or its layers or head are of a kind that cannot be steered.
        RuntimeError: At the first update the tail does not give the model's own logits.
    """
    kwargs = renamed_cache(kwargs)
    check_call(model, generation_config, kwargs)
    loop = DecodingLoop(method, streamer=streamer, generators=generators)
    loop.trained_positions = _add_trained_positions(model, positions, kwargs)
    loop.token_types = take_token_types(model, kwargs)
    config = _with_stop_criteria(generation_config, tokenizer, kwargs)
    if method.compile == "on":
        kwargs[CACHE] = _static_cache(model, config, kwargs)
    with frozen(model):
        run: Any = model.generate
        sequences = run(generation_config=config, custom_generate=loop, streamer=streamer, **kwargs)
    return Generation(sequences=sequences, traces=loop.traces)


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


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """Within it no parameter of ``model`` requires a gradient, so that autograd records nothing but the tail."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def _add_trained_positions(model: PreTrainedModel, positions: str, kwargs: dict[str, Any]) -> bool:
    """Adds the prompts' ``position_ids``, (4, batch, tokens), and says so; not for ``transformers`` or given ones."""
    if check_choice(positions) != "trained" or kwargs.get("position_ids") is not None:
        return False
    if family_of(model).positions != "trained":
        return False  # transformers places its text as it was trained.
    if kwargs.get("input_ids") is None:
        raise ValueError("trained positions are computed from input_ids: pass every output of the processor by name")
    padding = model.generation_config.pad_token_id
    if kwargs.get("attention_mask") is None and (kwargs["input_ids"][:, 0] == padding).any():
        raise ValueError("a prompt begins with padding that nothing masks: pass attention_mask")
    kwargs["position_ids"] = trained_positions(model.config, **kwargs)
    return True


def _static_cache(model: PreTrainedModel, config: GenerationConfig | None, kwargs: dict[str, Any]) -> Cache:
    """The cache in ``kwargs`` if it is static; else a static one for the longest sequence, with what it held."""
    given: Cache | None = kwargs.get(CACHE)
    if given is not None and given.is_compileable:
        return given
    new_tokens = kwargs.get("max_new_tokens", (config or model.generation_config).max_new_tokens)
    if new_tokens is None:
        raise ValueError("compile='on' needs to know how many tokens there will be: pass max_new_tokens")
    cache = static_cache(model, kwargs["input_ids"].shape[1] + int(new_tokens))
    return cache if given is None else copy_cache(given, cache)


def _with_stop_criteria(
    config: GenerationConfig | None, tokenizer: Any, kwargs: dict[str, Any]
) -> GenerationConfig | None:
    """A copy of ``config`` without ``stop_strings``; they go into the stopping criteria of ``kwargs``.

    transformers keeps the tokenizer from a callable of one's own as well, and then refuses stop strings.
    """
    config = copy.deepcopy(config)
    if strings := kwargs.pop("stop_strings", None) or getattr(config, "stop_strings", None):
        if tokenizer is None:
            raise ValueError("stop_strings need the tokenizer: pass tokenizer=processor.tokenizer")
        if config is not None:
            config.stop_strings = None
        criteria = kwargs.get("stopping_criteria") or []
        kwargs["stopping_criteria"] = StoppingCriteriaList([*criteria, StopStringCriteria(tokenizer, strings)])
    return config
