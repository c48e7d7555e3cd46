"""Subcommands of this room. pandas, scipy and matplotlib are imported when one is run."""

import argparse
import sys
from pathlib import Path

_RUN = "an lmms-eval output folder, results file or samples file, as [label=]path[#tasks]"


def add_commands(subparsers) -> None:
    """Adds this room's subcommands to the ``vreason`` parser."""
    report = subparsers.add_parser("report", help="compare runs: scores, paired tests, cost, figures")
    report.add_argument("runs", nargs="+", metavar="RUN", help=f"{_RUN}; the first is the baseline; one label several "
                        "times = seeds")  # fmt: skip
    report.add_argument("--output", type=Path, metavar="PREFIX", help="write PREFIX.md, .csv, .json, .tex, .html and "
                        "figures as PREFIX-<name>.png and .svg")  # fmt: skip
    report.add_argument("--published", action="store_true", help="add the paper's figures, marked as not re-run")
    report.add_argument("--resamples", type=_positive, default=2000, help="of the bootstrap (default: %(default)s)")
    report.set_defaults(run=_report)


def _positive(text: str) -> int:
    value = int(text)
    if value < 100:
        raise argparse.ArgumentTypeError(f"{value}: at least 100 resamples are needed for a 95% interval")
    return value


def _report(args: argparse.Namespace) -> int:
    from rich.console import Console
    from tqdm import tqdm

    from lmms_eval_vreason.report.compare import compare
    from lmms_eval_vreason.report.figures import report_figures, save
    from lmms_eval_vreason.report.page import report_page, write_page
    from lmms_eval_vreason.report.runs import read_run
    from lmms_eval_vreason.report.tables import print_terminal, write_tables

    runs = [read_run(argument) for argument in tqdm(args.runs, desc="reading runs", disable=len(args.runs) < 2)]
    comparison = compare(runs, resamples=args.resamples, published=args.published)
    console = Console(width=None if sys.stdout.isatty() else 160)
    print_terminal(comparison, console)
    if args.output:
        written = write_tables(comparison, args.output)
        figures = report_figures(comparison)
        for name, figure in figures.items():
            written += save(figure, args.output.with_name(f"{args.output.name}-{name}"))
        written.append(write_page(report_page(comparison, figures), args.output.with_name(f"{args.output.name}.html")))
        console.print("wrote " + ", ".join(map(str, written)), markup=False, highlight=False)
    return 0
