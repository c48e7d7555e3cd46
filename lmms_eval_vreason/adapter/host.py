"""Inside lmms-eval's command: what its command line says, and an exit code that reports a failed run.

lmms-eval prints an exception of a model and exits with 0. SystemExit passes through it.
"""

import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmms_eval.utils import simple_parse_args_string

import __main__


def runs_as_command() -> bool:
    """Whether this process is lmms-eval's command, rather than a program that imports us."""
    spec = getattr(__main__, "__spec__", None)
    name = spec.name if spec is not None else Path(sys.argv[0] or "").name
    return name.split(".")[0] in ("lmms_eval", "lmms-eval")


def flag(asked: str) -> str | None:
    """What follows one of lmms-eval's flags on its command line; None without it, or in another program."""
    found = None
    for word, following in zip(sys.argv, [*sys.argv[1:], ""], strict=True) if runs_as_command() else ():
        name, equals, value = word.partition("=")
        if name == asked:
            found = value if equals else following
    return found


def output_folder() -> Path | None:
    """lmms-eval's ``--output_path``, if this process is its command and has one."""
    return Path(given) if (given := flag("--output_path")) else None


def named_generation_settings() -> dict[str, Any]:
    """What the user gave by name in ``--gen_kwargs``. lmms-eval mixes it with the task's own settings."""
    return parse_pairs("--gen_kwargs", flag("--gen_kwargs") or "")


def parse_pairs(name: str, text: str) -> dict[str, Any]:
    """``a=1,b=two`` by lmms-eval's own rules.

    Raises:
        ValueError: A part without ``=``.
    """
    try:
        return dict(simple_parse_args_string(text))
    except ValueError as error:
        raise ValueError(f"{name} {text!r}: write name=value, with commas between") from error


def model_arguments(text: str, flags: Mapping[str, Any]) -> dict[str, Any]:
    """``--model_args``, with the flags that lmms-eval passes on as arguments of the same names.

    lmms-eval passes ``--batch_size 1`` on where the user gave none, so ``--model_args`` wins.
    """
    return {name: value for name, value in flags.items() if value is not None} | parse_pairs("--model_args", text)


@contextmanager
def exit_on_failure(model_id: str) -> Iterator[None]:
    """Within lmms-eval's command, ends the process with code 1 and one line where an exception would be swallowed.

    A user's mistake (ValueError) is that line alone; anything else also shows where it came from. A program that
    imports the class gets the exception itself.
    """
    try:
        yield
    except Exception as error:
        if not runs_as_command():
            raise
        if not isinstance(error, ValueError):
            sys.excepthook(type(error), error, error.__traceback__)
        raise SystemExit(f"{model_id}: {error}") from error


@contextmanager
def terminable() -> Iterator[None]:
    """Within it, SIGTERM ends the command as Ctrl-C does: the stack unwinds, and the user gets a last word."""
    if not runs_as_command() or threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
