"""Living inside lmms-eval's command: where it writes, and an exit code that says when a run of ours has failed.

lmms-eval prints an exception of a model and exits with 0. SystemExit passes through it.
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import __main__


def runs_as_command() -> bool:
    """Whether this process is lmms-eval's command, rather than a program that imports us."""
    spec = getattr(__main__, "__spec__", None)
    name = spec.name if spec is not None else Path(sys.argv[0] or "").name
    return name.split(".")[0] in ("lmms_eval", "lmms-eval")


def output_folder() -> Path | None:
    """lmms-eval's ``--output_path``, if this process is its command and has one."""
    if not runs_as_command():
        return None
    for argument, following in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
        if argument == "--output_path" and following:
            return Path(following)
        if argument.startswith("--output_path="):
            return Path(argument.partition("=")[2])
    return None


def has_response_cache() -> bool:
    """Whether this process is lmms-eval's command with ``--use_cache``: it may then hand a process no requests at all,
    without a call, so that others must not wait for it."""
    return runs_as_command() and any(word.partition("=")[0] == "--use_cache" for word in sys.argv)


@contextmanager
def exit_on_failure() -> Iterator[None]:
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
        raise SystemExit(f"qwen2_5_vl_vreason: {error}") from error


@contextmanager
def terminable() -> Iterator[None]:
    """Within it, SIGTERM ends the command as Ctrl-C does: the stack unwinds, and files are left whole."""
    if not runs_as_command() or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number, frame):
        raise SystemExit(128 + number)

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
