"""The ``vreason`` subcommands of this room."""

import argparse
from typing import Any

from lmms_eval_vreason.adapter.environment import environment
from lmms_eval_vreason.paths import tasks_dir


def add_commands(subparsers: Any) -> None:
    """Adds ``env`` and ``tasks``."""
    for name, run, what in (
        ("tasks", _tasks, "print the folder for lmms-eval's --include_path"),
        ("env", _env, "print versions and machine, to paste into an issue"),
    ):
        subparsers.add_parser(name, help=what).set_defaults(run=run)


def _tasks(args: argparse.Namespace) -> int:
    print(tasks_dir())
    return 0


def _env(args: argparse.Namespace) -> int:
    for name, value in environment().items():
        print(name, value)
    return 0
