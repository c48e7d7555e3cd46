"""Subcommands of this room: ``vreason checkpoint``."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def _print_checkpoint_dir(args: argparse.Namespace) -> int:
    from lmms_eval_vreason.shapes import checkpoint_dir

    print(checkpoint_dir())
    return 0


def add_commands(subparsers: "Subparsers") -> None:
    """Adds this room's subcommands to the ``vreason`` parser."""
    checkpoint = subparsers.add_parser("checkpoint", help="print the folder of the tiny trained checkpoint, `shapes`")
    checkpoint.set_defaults(run=_print_checkpoint_dir)
