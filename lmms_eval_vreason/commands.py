"""Subcommands that belong to no room of their own: ``vreason tasks``."""

import argparse

from lmms_eval_vreason.paths import tasks_dir


def _print_tasks_dir(args: argparse.Namespace) -> int:
    print(tasks_dir())
    return 0


def add_commands(subparsers) -> None:
    """Adds this room's subcommands to the ``vreason`` parser."""
    tasks = subparsers.add_parser("tasks", help="print the folder for lmms-eval's --include_path")
    tasks.set_defaults(run=_print_tasks_dir)
