"""Subcommands of this room: ``vreason checkpoint``."""

import argparse


def _print_checkpoint_dir(args: argparse.Namespace) -> int:
    from lmms_eval_vreason.shapes import checkpoint_dir

    print(checkpoint_dir())
    return 0


def add_commands(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds this room's subcommands to the ``vreason`` parser."""
    checkpoint = subparsers.add_parser("checkpoint", help="print the folder of the tiny trained checkpoint, `shapes`")
    checkpoint.set_defaults(run=_print_checkpoint_dir)
