"""Every ``--model_args`` value, parsed and checked once, before anything heavy happens."""

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError, field_validator

from lmms_eval_vreason.adapter.kinds import KINDS, Kind
from lmms_eval_vreason.media.options import VideoOptions
from lmms_eval_vreason.method.config import VReason
from lmms_eval_vreason.options import OptionGroup, option, spelled
from lmms_eval_vreason.prompts.options import ThinkingOptions
from lmms_eval_vreason.run.options import AnswerOptions, RunOptions

# Hyperparameters that are about speed alone: compiled and eager steps give the same tokens.
_SAME_ANSWERS = {"compile"}


class ModelOptions(OptionGroup):
    """The checkpoint and how it is loaded.

    Attributes:
        pretrained: A hub name, a folder, or ``shapes`` (the tiny Qwen2.5-VL checkpoint that ships with the package).
            Each model class has its own default.
        batch_size: Samples decoded together. ``auto`` doubles until memory runs out, and then halves. The same as
            lmms-eval's ``--batch_size``.
        max_batch_size: The most that ``auto`` tries (none: 64, and 8 without a GPU). The same as ``--max_batch_size``.
        revision: The hub's revision.
        dtype: ``auto`` is the checkpoint's own on a GPU and float32 on the CPU.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:0``. The same as ``--device``.
        device_map: ``auto`` spreads a model over several GPUs, in one process. What does not fit on them is refused,
            not offloaded.
        attn_implementation: None leaves it to transformers.
        positions: Position ids of the text after a video: as the published weights were trained, or as the installed
            transformers computes them, to compare with the stock class.
    """

    # Of `pretrained`, `revision` and `dtype` the resume key holds what they come to.
    pretrained: str = option("Qwen/Qwen2.5-VL-7B-Instruct", "usual", changes_answers=False)
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = option(
        1, "usual", changes_answers=False, or_else="or auto"
    )
    max_batch_size: int | None = option(None, "expert", changes_answers=False, ge=1)
    revision: str | None = option(None, "expert", changes_answers=False)
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = option("auto", "expert", changes_answers=False)
    device: str = option("auto", "expert", changes_answers=False)
    device_map: str | None = option(None, "expert", changes_answers=False)
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] | None = option(
        None, "expert", changes_answers=True
    )
    positions: Literal["trained", "transformers"] = option("trained", "expert", changes_answers=True)

    @field_validator("batch_size", mode="before")
    @classmethod
    def _auto_n(cls, value: Any) -> Any:
        # lmms-eval's command also knows `auto:N`, to look for the size N times; ours never stops looking.
        return "auto" if isinstance(value, str) and value.partition(":")[0] == "auto" else value


@dataclass(frozen=True)
class Options(AnswerOptions):
    """Everything that the model class was given, checked.

    Attributes:
        given: The arguments as they were given, for the journal.
    """

    model: ModelOptions
    given: dict[str, Any]

    def changing_answers(self) -> dict[str, Any]:
        """Name → value of the options that change an answer. Budgets do so only while thinking is on."""
        thinking = self.thinking.changing_answers()
        if not self.thinking.thinking:
            thinking = {name: thinking[name] for name in ("thinking", "enable_thinking")}
        method = {name: value for name, value in asdict(self.method).items() if name not in _SAME_ANSWERS}
        return self.model.changing_answers() | self.video.changing_answers() | thinking | method


GROUPS: dict[str, type[OptionGroup]] = {
    "model": ModelOptions,
    "video": VideoOptions,
    "thinking": ThinkingOptions,
    "run": RunOptions,
}
# The method's arguments, which VReason checks itself.
METHOD_NAMES = ("preset", *(field.name for field in fields(VReason)))


def argument_names() -> list[str]:
    """Every name that ``--model_args`` may hold."""
    groups = [name for group in GROUPS.values() for name in group.model_fields]
    return [*groups, *METHOD_NAMES]


def parse_options(arguments: Mapping[str, Any], kind: Kind = KINDS["qwen2_5_vl_vreason"]) -> Options:
    """Checks all arguments.

    Args:
        arguments: As lmms-eval hands them over (text, numbers, booleans), with ``batch_size`` and ``device``.
        kind: Whose defaults apply.

    Raises:
        ValueError: One line that names the argument, what was given and what is allowed.
    """
    for name in arguments:
        if name not in argument_names():
            close = difflib.get_close_matches(name, argument_names(), n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ValueError(f"unknown model argument {name!r}: {hint}allowed are {', '.join(argument_names())}")
    for name in ("max_pixels", "min_pixels"):
        if name in arguments and not kind.resizes:
            sizes = f"the processor of a {' or '.join(kind.model_types)} checkpoint resizes frames by its own rule"
            raise ValueError(f"{name}={arguments[name]!r}: {sizes}, leave {name} out")
    values = {"pretrained": kind.pretrained, **kind.defaults, **arguments}
    groups: dict[str, Any] = {
        room: group.checked({name: values[name] for name in group.model_fields if name in values})
        for room, group in GROUPS.items()
    }
    options = Options(**groups, method=_parse_method(arguments), given=dict(arguments))
    # A map spreads the model over GPUs, and what moves tensors between devices cannot be compiled.
    for name, value in (("device", options.model.device), ("compile", options.method.compile)):
        if options.model.device_map and value in ("cpu", "on"):
            placed = f"device_map={options.model.device_map!r}"
            raise ValueError(f"{name}={value!r} does not go with {placed}: leave one of them out")
    return options


def with_video_defaults(options: Options, defaults: Mapping[str, Any]) -> Options:
    """The options with a checkpoint's own video defaults; what the user gave wins.

    Raises:
        ValueError: The two do not go together.
    """
    given = {name: value for name, value in options.given.items() if name in VideoOptions.model_fields}
    return replace(options, video=VideoOptions.checked({**dict(options.video), **defaults, **given}))


def _parse_method(arguments: Mapping[str, Any]) -> VReason:
    """VReason checks its own values, so only their types are mended here."""
    given = {}
    for name, kind in get_type_hints(VReason).items():
        if name in arguments:
            value = spelled(arguments[name], kind)
            try:
                given[name] = TypeAdapter(kind).validate_python(value)
            except ValidationError as error:
                if kind is bool:
                    raise ValueError(f"{name}={value!r} is neither on nor off") from error
                given[name] = arguments[name]
    return VReason.preset(arguments.get("preset", "default"), **given)
