"""The ``vreason`` subcommand of this room."""

import argparse
import sys
from typing import Any


def add_commands(subparsers: Any) -> None:
    """Adds ``arguments``."""
    parser = subparsers.add_parser("arguments", help="every model argument, as Markdown tables")
    parser.set_defaults(run=_arguments)


def _arguments(args: argparse.Namespace) -> int:
    from lmms_eval_vreason.adapter.arguments import tables  # Imports torch, which no other subcommand should wait for.

    sys.stdout.write(tables())
    return 0
