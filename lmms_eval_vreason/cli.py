"""The console command ``vreason``: one parser, whose subcommands live in the rooms that do their work."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

from lmms_eval_vreason import __version__

_ROOMS = (
    "lmms_eval_vreason.adapter.commands",
    "lmms_eval_vreason.calibrate.commands",
    "lmms_eval_vreason.bench.commands",
    "lmms_eval_vreason.report.commands",
    "lmms_eval_vreason.shapes.commands",
)
# What a plain install may lack: the modules that each extra brings, and the commands that need the extra.
EXTRAS = {
    "report": ("jinja2", "matplotlib", "pandas", "scipy", "statsmodels"),
    "bench": ("pandas", "tabulate", "tokenizers"),
}
_EXTRA_OF = {**dict.fromkeys(("report", "plot", "flips", "doctor", "submit", "calibrate"), "report"), "bench": "bench"}


def build_parser() -> argparse.ArgumentParser:
    """The whole command line. Each room adds its own subcommands and sets ``run``, a function args → exit code."""
    parser = argparse.ArgumentParser(prog="vreason", description="V-Reason for lmms-eval: reports, benchmark, data.")
    parser.add_argument("--version", action="version", version=f"lmms-eval-vreason {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for room in _ROOMS:
        import_module(room).add_commands(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand.

    A user's mistake (ValueError, OSError) or a missing extra is one line on stderr and exit code 2.
    """
    args = build_parser().parse_args(argv)
    try:
        _check_extra(args.command)
        code: int = args.run(args)
        return code
    except BrokenPipeError:
        return 1
    except (ValueError, OSError) as error:
        print(f"vreason: {error}", file=sys.stderr)
        return 2


def _check_extra(command: str) -> None:
    """Raises ValueError if a module that the command needs is not installed. Imports none, so it costs nothing."""
    extra = _EXTRA_OF.get(command)
    missing = [module for module in EXTRAS.get(extra or "", ()) if find_spec(module) is None]
    if missing:
        raise ValueError(f"{command} needs {', '.join(missing)}: pip install 'lmms-eval-vreason[{extra}]'")


if __name__ == "__main__":
    raise SystemExit(main())
