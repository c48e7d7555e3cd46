"""The ``vreason`` subcommands of this room."""

import argparse
import sys
from typing import Any

from lmms_eval_vreason.paths import tasks_dir


def add_commands(subparsers: Any) -> None:
    """Adds ``arguments`` and ``tasks``."""
    folder = subparsers.add_parser("tasks", help="print the folder for lmms-eval's --include_path")
    folder.set_defaults(run=_tasks)
    parser = subparsers.add_parser("arguments", help="every model argument, as Markdown tables")
    parser.set_defaults(run=_arguments)


def _tasks(args: argparse.Namespace) -> int:
    sys.stdout.write(f"{tasks_dir()}\n")
    return 0


def _arguments(args: argparse.Namespace) -> int:
    from lmms_eval_vreason.adapter.arguments import tables  # Imports torch, which no other subcommand should wait for.

    sys.stdout.write(tables())
    return 0
