"""Every ``--model_args`` value, parsed and checked before anything heavy happens."""

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from lmms_eval_vreason.method.config import VReason

_SHARED_PREFIX = 4.0
_ON = {"on": True, "true": True, "yes": True, "1": True, "off": False, "false": False, "no": False, "0": False}


def _option(default: Any, *, parse: Callable[[str, Any], Any] | None = None, **metadata: Any) -> Any:
    return field(default=default, metadata={"parse": parse, **metadata})


def _choice(*allowed: str) -> Callable[[str, Any], str]:
    def parse(name: str, value: Any) -> str:
        # `compile=on` and `thinking=off` reach us as text or, from Python, as booleans.
        text = {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value
        if text not in allowed:
            raise ValueError(f"{name}={value!r} is not one of {', '.join(allowed)}")
        return text

    return parse


def _switch(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if str(value).strip().lower() not in _ON:
        raise ValueError(f"{name}={value!r} is neither on nor off")
    return _ON[str(value).strip().lower()]


def _whole(low: int) -> Callable[[str, Any], int]:
    def parse(name: str, value: Any) -> int:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if isinstance(value, bool) or not number.is_integer() or number < low:
            raise ValueError(f"{name}={value!r} must be a whole number of at least {low}")
        return int(number)

    return parse


def _number(low: float, high: float, *, with_low: bool = True) -> Callable[[str, Any], float]:
    def parse(name: str, value: Any) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = float("nan")
        above = number >= low if with_low else number > low
        if isinstance(value, bool) or not (above and number <= high):
            raise ValueError(f"{name}={value!r} must be a number {'from' if with_low else 'above'} {low:g} to {high:g}")
        return number

    return parse


def _optional(parse: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda name, value: None if value in (None, "", "none", "None") else parse(name, value)


def _text(name: str, value: Any) -> str:
    return str(value)


def _text_or_file(name: str, value: Any) -> str:
    """A text as given, or the content of the file it names (a path by its look: one that ends in .txt or .md)."""
    text = str(value)
    if text.endswith((".txt", ".md")):
        path = Path(text).expanduser()
        if not path.is_file():
            raise ValueError(f"{name}={text!r}: there is no such file. Give a text, or the path of a text file")
        return path.read_text(encoding="utf-8").strip("\n")
    return text.replace("\\n", "\n")


def _batch_size(name: str, value: Any) -> int | str:
    # lmms-eval's command also knows `auto:N`, to look for the size N times; ours never stops looking.
    if isinstance(value, str) and value.partition(":")[0] == "auto":
        return "auto"
    try:
        return _whole(1)(name, value)
    except ValueError as error:
        raise ValueError(f"{error}, or auto") from None


def _shared_prefix(name: str, value: Any) -> float:
    words = {"off": 0.0, "false": 0.0, "auto": _SHARED_PREFIX, "on": _SHARED_PREFIX, "true": _SHARED_PREFIX}
    given = words.get(str(value).strip().lower(), value)
    try:
        return _number(0, 1000)(name, given)
    except ValueError as error:
        raise ValueError(f"{error}, auto or off") from None


@dataclass(frozen=True)
class ModelOptions:
    """The checkpoint and how it is loaded."""

    pretrained: str = _option("Qwen/Qwen2.5-VL-7B-Instruct", parse=_text)
    revision: str | None = _option(None, parse=_optional(_text))
    dtype: str = _option("auto", parse=_choice("auto", "bfloat16", "float16", "float32"))
    device: str = _option("auto", parse=_text)
    device_map: str | None = _option(None, parse=_optional(_text))
    attn_implementation: str | None = _option(
        None, parse=_optional(_choice("sdpa", "eager", "flash_attention_2", "flash_attention_3"))
    )
    positions: str = _option("trained", parse=_choice("trained", "transformers"))
    batch_size: int | str = _option(1, parse=_batch_size)
    max_batch_size: int | None = _option(None, parse=_optional(_whole(1)))


@dataclass(frozen=True)
class VideoOptions:
    """Frames and pixels. Pixel bounds are per frame (or image), in pixels; ``fps`` in frames per second of video."""

    min_pixels: int = _option(256 * 28 * 28, parse=_whole(28 * 28))
    max_pixels: int = _option(1605632, parse=_whole(28 * 28))
    max_num_frames: int = _option(32, parse=_whole(2))
    fps: float | None = _option(None, parse=_optional(_number(0, 240, with_low=False)))
    read_ahead: int = _option(2, parse=_whole(0))


@dataclass(frozen=True)
class ThinkingOptions:
    """Whether the model is asked to think, within which budgets (tokens), and what returns to lmms-eval."""

    thinking: bool = _option(True, parse=_switch)
    reasoning_prompt: str | None = _option(None, parse=_optional(_text_or_file))
    system_prompt: str | None = _option(None, parse=_optional(_text_or_file))
    max_thinking_tokens: int = _option(1024, parse=_whole(1))
    max_answer_tokens: int = _option(128, parse=_whole(1))
    return_thinking: bool = _option(True, parse=_switch)


@dataclass(frozen=True)
class RunOptions:
    """The journal, what happens to a sample that fails, and how much is kept between samples; none of it changes an
    answer. ``max_error_rate`` is a share of the finished samples; ``shared_prefix`` is in GB (10⁹ bytes)."""

    journal: str | None = _option(None, parse=_optional(_text))
    resume: bool = _option(True, parse=_switch)
    on_error: str = _option("skip", parse=_choice("skip", "raise"))
    oom: str = _option("error", parse=_choice("error", "lite"))
    max_error_rate: float = _option(0.05, parse=_number(0, 1))
    shared_prefix: float = _option(_SHARED_PREFIX, parse=_shared_prefix)


@dataclass(frozen=True)
class Options:
    """Everything the model class was given, checked.

    Attributes:
        given: The arguments as they were given, for the journal.
    """

    model: ModelOptions
    video: VideoOptions
    thinking: ThinkingOptions
    run: RunOptions
    method: VReason
    given: dict[str, Any]


_ROOMS: dict[str, type] = {
    "model": ModelOptions,
    "video": VideoOptions,
    "thinking": ThinkingOptions,
    "run": RunOptions,
    "method": VReason,
}


def argument_names() -> list[str]:
    """Every name that ``--model_args`` may hold, in the README's order."""
    return [f.name for room in _ROOMS.values() for f in fields(room)]


def parse_options(arguments: Mapping[str, Any]) -> Options:
    """Checks all arguments.

    Args:
        arguments: As lmms-eval hands them over (text, numbers, booleans), with ``batch_size`` and ``device``.

    Raises:
        ValueError: One line that names the argument, what was given and what is allowed.
    """
    unknown = [name for name in arguments if name not in argument_names()]
    if unknown:
        raise ValueError(_unknown(unknown[0]))
    rooms = {}
    for room, kind in _ROOMS.items():
        given = {f.name: _parse(f, arguments[f.name]) for f in fields(kind) if f.name in arguments}
        rooms[room] = kind(**given)
    options = Options(**rooms, given=dict(arguments))
    _check_together(options)
    return options


def _parse(option: Field, value: Any) -> Any:
    if option.metadata.get("parse"):
        return option.metadata["parse"](option.name, value)
    # A field of VReason: it checks its own range, so only its type is mended here.
    if option.type is bool:
        return _switch(option.name, value)
    if option.type is str and isinstance(value, bool):
        return "on" if value else "off"
    if option.type in (int, float) and isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    return int(value) if option.type is int and isinstance(value, float) and value.is_integer() else value


def _check_together(options: Options) -> None:
    video, model = options.video, options.model
    if video.min_pixels > video.max_pixels:
        raise ValueError(f"min_pixels={video.min_pixels} is above max_pixels={video.max_pixels}: lower it")
    if model.device_map and model.device == "cpu":
        raise ValueError(f"device_map={model.device_map!r} does not go with device=cpu: leave one of them out")
    if model.device_map and options.method.compile == "on":
        raise ValueError(
            f"compile='on' does not go with device_map={model.device_map!r}: what moves tensors between devices cannot "
            "be compiled. Leave one of them out"
        )
    if options.run.journal and options.run.journal != "off":
        check_writable(Path(options.run.journal).expanduser(), "journal")


def check_writable(folder: Path, name: str) -> None:
    """Raises ValueError unless ``folder`` is, or can be made, a folder this process can write into."""
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(f"{name}={str(folder)!r} cannot be written to: give a folder that you may write into")


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, argument_names(), n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"unknown model argument {name!r}: {hint}allowed are {', '.join(argument_names())}"


def defaults() -> dict[str, Any]:
    """Name → default of every model argument, for the documentation and its test."""
    return {f.name: None if f.default is MISSING else f.default for room in _ROOMS.values() for f in fields(room)}
