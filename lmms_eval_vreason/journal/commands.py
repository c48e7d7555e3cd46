"""The command ``vreason journal``: what a journal holds, and whether all of it can be read."""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from lmms_eval_vreason.journal.files import journal_files, latest_samples, read_lines, read_records, traces_path


def add_commands(subparsers: Any) -> None:
    """Adds this room's subcommands to the ``vreason`` parser."""
    journal = subparsers.add_parser("journal", help="look at or check a journal")
    actions = journal.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("show", help="runs, samples and errors in a journal")
    show.add_argument("--samples", type=int, default=0, help="show the last N samples as well")
    check = actions.add_parser("check", help="find lines that cannot be read; exit code 1 if there are any")
    for action, run in ((show, _show), (check, _check)):
        action.add_argument("journal", type=Path, help="journal folder or file")
        action.set_defaults(run=run)


def _show(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    records = list(read_records(args.journal))
    # Of a sample that was answered again, only the newest answer counts, whichever run gave it.
    samples = list(latest_samples(records).values())
    table = Table("run", "started", "checkpoint", "policy", "samples", "steered", "errors", "replaced")
    for run, header in {record["run"]: record for record in records if record["kind"] == "run"}.items():
        own = [sample for sample in samples if sample["run"] == run]
        written = sum(record["kind"] == "sample" and record["run"] == run for record in records)
        steered = sum(bool((sample["trace"] or {}).get("updates")) for sample in own)
        errors = sum(sample["error"] is not None for sample in own)
        counts = map(str, (len(own), steered, errors, written - len(own)))
        table.add_row(run[:12], header["started"], str(header["checkpoint"]), header["method"]["policy"], *counts)
    console = Console(markup=False)
    console.print(table)
    reasons = Counter(sample["error"]["message"] for sample in samples if sample["error"] is not None)
    for reason, count in reasons.most_common():
        console.print(f"{count} failed: {reason}", highlight=False)
    for sample in samples[-args.samples :] if args.samples else ():
        console.rule(f"{sample['task']} doc {sample['doc_id']}")
        console.print(f"{sample['thinking']}\n→ {sample['answer']}", highlight=False)
    return 0


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
