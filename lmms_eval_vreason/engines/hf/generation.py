"""``generate``: ``model.generate`` with the method's loop in the place that ``custom_generate`` leaves for one."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteriaList, StopStringCriteria
from transformers.generation.streamers import BaseStreamer

from lmms_eval_vreason.engines.hf.cache import copy_cache, static_cache
from lmms_eval_vreason.engines.hf.loop import DecodingLoop
from lmms_eval_vreason.engines.hf.support import check_call
from lmms_eval_vreason.engines.hf.upstream import CACHE, renamed_cache
from lmms_eval_vreason.families.family import family_of
from lmms_eval_vreason.families.positions import check_choice, trained_positions
from lmms_eval_vreason.method.config import VReason
from lmms_eval_vreason.method.trace import Trace


@dataclass(frozen=True)
class Generation:
    """What :func:`generate` returns.

    Attributes:
        sequences: (batch, prompt + generated tokens), as ``model.generate`` returns them.
        traces: One a sample.
    """

    sequences: Tensor
    traces: list[Trace]


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
        model: A model of a family in :mod:`lmms_eval_vreason.families.family`. It is left as it was, whatever
            happens.
        method: The method's hyperparameters.
        generation_config, streamer, **kwargs: As for ``model.generate``; pass every output of the processor through.
        tokenizer: Needed with ``stop_strings``.
        generators: One a sample: sampling draws from these instead of torch's global generator, so that a sample's
            tokens do not depend on its neighbours.
        positions: ``trained`` (default) places text after a video as Qwen trained it; ``transformers`` leaves positions
            to transformers, to compare with plain ``model.generate`` token by token. ``position_ids`` that are passed
            are used as they are.

    Raises:
        ValueError: Beam search, assisted decoding, ``use_cache=False``, several sequences a prompt, a cache whose
            layers cannot be steered, placeholders that disagree with the grids.
        TypeError: ``model`` is of no tested family, or its last layer or head is of a kind that cannot be steered.
        RuntimeError: At the first update the tail does not give the model's own logits.
    """
    kwargs = renamed_cache(kwargs)
    family_of(model)
    check_call(model, generation_config, kwargs)
    trained = check_choice(positions) == "trained" and kwargs.get("position_ids") is None
    if trained:
        kwargs["position_ids"] = _positions(model, kwargs)
    loop = DecodingLoop(method, streamer=streamer, generators=generators, trained_positions=trained)
    if streamer is not None:
        kwargs["streamer"] = streamer
    generation_config = copy.deepcopy(generation_config)
    _add_stop_strings(generation_config, tokenizer, kwargs)
    given = kwargs.get(CACHE)
    if method.compile == "on" and not (given is not None and given.is_compileable):
        cache = static_cache(model, _longest(model, generation_config, kwargs))
        kwargs[CACHE] = cache if given is None else copy_cache(given, cache)
    with frozen(model):
        run: Any = model.generate
        sequences = run(generation_config=generation_config, custom_generate=loop, **kwargs)
    return Generation(sequences=sequences, traces=loop.traces)


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


def _positions(model: PreTrainedModel, inputs: dict[str, Any]) -> Tensor:
    """The prompts' trained positions, (4, batch, tokens)."""
    if inputs.get("input_ids") is None:
        raise ValueError("trained positions are told from input_ids: pass every output of the processor by name")
    padding = model.generation_config.pad_token_id
    if inputs.get("attention_mask") is None and (inputs["input_ids"][:, 0] == padding).any():
        raise ValueError("a prompt begins with padding, and nothing masks it: pass attention_mask")
    return trained_positions(model.config, **inputs)


def _longest(model: PreTrainedModel, generation_config: GenerationConfig | None, kwargs: dict[str, Any]) -> int:
    """Tokens of the longest sequence this call can make, prompt included."""
    config = model.generation_config if generation_config is None else generation_config
    new_tokens = kwargs.get("max_new_tokens", config.max_new_tokens)
    if new_tokens is None:
        raise ValueError("compile='on' needs to know how many tokens there will be: pass max_new_tokens")
    prompt: Tensor = kwargs["input_ids"]
    return prompt.shape[1] + int(new_tokens)


def _add_stop_strings(generation_config: GenerationConfig | None, tokenizer: Any, kwargs: dict[str, Any]) -> None:
    # transformers keeps the tokenizer from a callable of one's own as well, and then refuses stop strings.
    strings = kwargs.pop("stop_strings", None) or getattr(generation_config, "stop_strings", None)
    if not strings:
        return
    if tokenizer is None:
        raise ValueError("stop_strings need the tokenizer: pass tokenizer=processor.tokenizer")
    if generation_config is not None:
        generation_config.stop_strings = None
    criteria = StoppingCriteriaList(kwargs.pop("stopping_criteria", None) or [])
    kwargs["stopping_criteria"] = StoppingCriteriaList([*criteria, StopStringCriteria(tokenizer, strings)])
