"""The command ``vreason journal check``: how many samples a journal holds, and whether all of it can be read."""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from lmms_eval_vreason.journal.files import journal_files, latest_samples, read_lines, traces_path


def add_commands(subparsers: Any) -> None:
    """Adds this room's subcommands to the ``vreason`` parser."""
    journal = subparsers.add_parser("journal", help="check a journal")
    actions = journal.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser("check", help="find lines that cannot be read; exit code 1 if there are any")
    check.add_argument("journal", type=Path, help="journal folder or file")
    check.set_defaults(run=_check)


def _check(args: argparse.Namespace) -> int:
    broken = 0
    for path in journal_files(args.journal):
        lines = list(read_lines(path))
        problems = [f"{line.number}: {line.problem}" for line in lines if line.problem]
        records = [line.record for line in lines if line.record is not None]
        if lost := sum(line.lost_trace for line in lines):
            traces = traces_path(path).name
            problems.append(f" {lost} samples have no trace in {traces}, and are answered again on resume")
        for problem in problems:
            print(f"{path}:{problem}")
        broken += len(problems)
        kinds = Counter(record["kind"] for record in records)
        replaced = kinds["sample"] - len(latest_samples(records))
        words = f"{kinds['sample'] - replaced} samples" + (f" ({replaced} more were replaced)" if replaced else "")
        print(f"{path}: {words}, {kinds['run']} starts")
    return 1 if broken else 0
