"""V-Reason for ``model.generate(custom_generate=…)``: the package does the work, this file sorts the arguments."""

from dataclasses import fields
from inspect import signature
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from lmms_eval_vreason import Generation, VReason
from lmms_eval_vreason import generate as steered

_METHOD = {field.name for field in fields(VReason)}
# What transformers fetches this file with. It hands these on, and they are no arguments of a generation.
_LOADING = {"cache_dir", "force_download", "local_files_only", "proxies", "revision", "token"}
# What the package takes beside the model's own inputs.
_FURTHER = {"cache", "past_key_values", "mm_token_type_ids", "stop_strings"}


def generate(model: PreTrainedModel, **arguments: Any) -> Tensor | Generation:
    """``model.generate`` under V-Reason.

    Args:
        model: Of a family that ``lmms_eval_vreason`` steers.
        **arguments: As for ``model.generate``, the method's hyperparameters (``policy``, ``learning_rate``, …), and
            ``generators`` and ``positions`` of ``lmms_eval_vreason.generate``.

    Returns:
        (batch, prompt + generated tokens). With ``return_dict_in_generate=True`` a ``Generation``, which has these as
        ``sequences`` and one trace a sample as ``traces``.

    Raises:
        TypeError: An argument that nothing takes, or a model of no tested family.
        ValueError: A value that the method or ``lmms_eval_vreason.generate`` refuses.
    """
    # transformers fills in its own defaults, most of them None.
    given = {name: value for name, value in arguments.items() if value is not None and name not in _LOADING}
    prompt = given.pop("inputs", None)
    if prompt is not None:
        given["input_ids"] = prompt
    as_record = given.pop("return_dict_in_generate", False)
    _refuse_unknown(model, given)
    method = VReason(**{name: given.pop(name) for name in _METHOD & given.keys()})
    generation = steered(model, method, **given)
    return generation if as_record else generation.sequences


def _refuse_unknown(model: PreTrainedModel, given: dict[str, Any]) -> None:
    takers: list[Any] = [steered, model.generate, model.forward, model.prepare_inputs_for_generation]
    known = _METHOD | _FURTHER | GenerationConfig().to_dict().keys()
    known = known.union(*(signature(taker).parameters for taker in takers))
    if unknown := sorted(given.keys() - known):
        raise TypeError(
            f"no argument of V-Reason or of generate: {', '.join(unknown)}. V-Reason's are {', '.join(sorted(_METHOD))}"
        )
