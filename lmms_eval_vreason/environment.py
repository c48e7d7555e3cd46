"""``vreason env``: the versions and the machine, to paste into an issue."""

import argparse
import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from lmms_eval_vreason import __version__


def add_commands(subparsers: Any) -> None:
    """Adds ``env``."""
    env = subparsers.add_parser("env", help="print versions and machine, to paste into an issue")
    env.set_defaults(run=_print_environment)


def environment() -> dict[str, str]:
    """Versions of this package, of Python and of every declared dependency, then the platform and the GPUs."""
    declared = (re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in requires("lmms-eval-vreason") or ())
    return {
        "lmms-eval-vreason": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in sorted(set(declared))},
        "platform": platform.platform(),
        "gpu": _gpus(),
    }


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


def _gpus() -> str:
    try:
        import torch
    except ImportError as error:
        return f"unknown: {error}"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(names) or "none"


def _print_environment(args: argparse.Namespace) -> int:
    for name, value in environment().items():
        print(name, value)
    return 0
