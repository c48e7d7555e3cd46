"""Subcommands that belong to no room of their own: ``vreason tasks`` and ``vreason journal``."""

import argparse
import csv
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from lmms_eval_vreason.journal.files import journal_files, latest_samples, read_lines, read_records
from lmms_eval_vreason.paths import tasks_dir

_EXPORTED = ("task", "split", "doc_id", "repeat", "thinking", "answer", "thinking_cut", "answer_cut")


def add_commands(subparsers) -> None:
    """Adds this room's subcommands to the ``vreason`` parser."""
    tasks = subparsers.add_parser("tasks", help="print the folder for lmms-eval's --include_path")
    tasks.set_defaults(run=_print_tasks_dir)
    journal = subparsers.add_parser("journal", help="look at, check or export a journal")
    actions = journal.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, run, words in (
        ("show", _show, "runs, samples and errors in a journal"),
        ("check", _check, "find lines that cannot be read; exit code 1 if there are any"),
        ("export", _export, "samples as CSV or JSON lines, without their traces"),
    ):
        action = actions.add_parser(name, help=words)
        action.add_argument("journal", type=Path, help="journal folder or file")
        action.set_defaults(run=run)
        if name == "show":
            action.add_argument("--samples", type=int, default=0, help="show the last N samples as well")
        if name == "export":
            action.add_argument("--format", choices=("csv", "jsonl"), default="csv")


def _print_tasks_dir(args: argparse.Namespace) -> int:
    print(tasks_dir())
    return 0


def _show(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    records = list(read_records(args.journal))
    samples = latest_samples(records)
    runs = {record["run"]: record for record in records if record["kind"] == "run"}
    table = Table("run", "started", "checkpoint", "policy", "samples", "steered", "errors")
    for run, header in runs.items():
        own = [sample for sample in samples.values() if sample["run"] == run]
        steered = sum(bool((sample["trace"] or {}).get("updates")) for sample in own)
        errors = sum(sample["error"] is not None for sample in own)
        counts = [str(n) for n in (len(own), steered, errors)]
        table.add_row(run[:12], header["started"], str(header["checkpoint"]), header["method"]["policy"], *counts)
    console = Console(markup=False)
    console.print(table)
    reasons = Counter(sample["error"]["message"] for sample in samples.values() if sample["error"] is not None)
    for reason, count in reasons.most_common():
        console.print(f"{count} failed: {reason}", highlight=False)
    for sample in list(samples.values())[-args.samples :] if args.samples else ():
        console.rule(f"{sample['task']} doc {sample['doc_id']}")
        console.print(f"{sample['thinking']}\n→ {sample['answer']}", highlight=False)
    return 0


def _check(args: argparse.Namespace) -> int:
    broken = 0
    for path in journal_files(args.journal):
        lines = list(read_lines(path))
        for line in lines:
            if line.problem:
                broken += 1
                print(f"{path}:{line.number}: {line.problem}")
        kinds = Counter(line.record["kind"] for line in lines if line.record is not None)
        print(f"{path}: {kinds['sample']} samples, {kinds['run']} starts")
    return 1 if broken else 0


def _export(args: argparse.Namespace) -> int:
    rows = [_exported(sample) for sample in latest_samples(read_records(args.journal)).values()]
    if args.format == "jsonl":
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
        return 0
    writer = csv.DictWriter(sys.stdout, [*_EXPORTED, "input_tokens", "output_tokens", "thinking_tokens", "error"])
    writer.writeheader()
    writer.writerows(rows)
    return 0


def _exported(sample: dict[str, Any]) -> dict[str, Any]:
    counts = {f"{name}_tokens": sample["tokens"][name] for name in ("input", "output", "thinking")}
    error = None if sample["error"] is None else sample["error"]["message"]
    return {**{name: sample[name] for name in _EXPORTED}, **counts, "error": error}
