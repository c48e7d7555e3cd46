"""Subcommands of this room."""


def add_commands(subparsers) -> None:
    """Adds this room's subcommands to the ``vreason`` parser."""
