"""The ``vreason`` subcommands of this room."""

import argparse
from typing import Any

from lmms_eval_vreason.adapter.environment import environment
from lmms_eval_vreason.paths import tasks_dir


def add_commands(subparsers: Any) -> None:
    """Adds ``env`` and ``tasks``."""
    tasks = subparsers.add_parser("tasks", help="print the folder for lmms-eval's --include_path")
    tasks.set_defaults(run=_tasks)
    env = subparsers.add_parser("env", help="print versions and machine, to paste into an issue")
    env.set_defaults(run=_env)


def _tasks(args: argparse.Namespace) -> int:
    print(tasks_dir())
    return 0


def _env(args: argparse.Namespace) -> int:
    for name, value in environment().items():
        print(name, value)
    return 0
