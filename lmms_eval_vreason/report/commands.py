"""Subcommands of this room. pandas, scipy and matplotlib are imported when one is run."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

_RUN = "an lmms-eval output folder, results file or samples file, as [label=]path[#tasks]"


def add_commands(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds this room's subcommands to the ``vreason`` parser."""
    report = subparsers.add_parser("report", help="compare runs: scores, paired tests, cost, figures")
    report.add_argument("runs", nargs="+", metavar="RUN", help=f"{_RUN}; the first is the baseline; one label several "
                        "times = seeds")  # fmt: skip
    report.add_argument("--output", type=Path, metavar="PREFIX", help="write PREFIX.md, .csv, .json, .tex, .html and "
                        "figures as PREFIX-<name>.png and .svg")  # fmt: skip
    report.add_argument("--published", action="store_true", help="add the paper's figures, marked as not re-run")
    report.add_argument("--resamples", type=_positive, default=2000, help="of the bootstrap (default: %(default)s)")
    report.set_defaults(run=_report)

    plot = subparsers.add_parser("plot", help="show one sample: frames, traces, text coloured by entropy")
    plot.add_argument("sample", metavar="RUN[#TASK/DOC]", help="a run with a journal, or a journal, and which sample "
                      "(default: the first steered one)")  # fmt: skip
    plot.add_argument("--output", type=Path, metavar="PREFIX", help="write PREFIX.html, .png and .svg (default: "
                      "<task>-<doc>)")  # fmt: skip
    plot.set_defaults(run=_plot)

    flips = subparsers.add_parser("flips", help="questions that one run gets right and the other wrong")
    flips.add_argument("first", metavar="A", help=_RUN)
    flips.add_argument("second", metavar="B", help="the run to compare with A")
    flips.add_argument("--output", type=Path, metavar="PREFIX", help="write PREFIX.html and PREFIX.txt")
    flips.add_argument("--limit", type=int, default=5, metavar="N", help="print at most N (default: %(default)s; the "
                       "files hold all)")  # fmt: skip
    flips.set_defaults(run=_flips)

    submit = subparsers.add_parser("submit", help="the answer file of a leaderboard, checked for completeness")
    submit.add_argument("benchmark", help="videomme, mvbench or tempcompass (the others have no form)")
    submit.add_argument("first", metavar="RUN", help=_RUN)
    submit.add_argument("--output", type=Path, default="submission", metavar="FOLDER", help="default: %(default)s")
    submit.add_argument("--chain", action="store_true", help="submit the whole text, chain of thought included")
    submit.set_defaults(run=_submit)


def _positive(text: str) -> int:
    value = int(text)
    if value < 100:
        raise argparse.ArgumentTypeError(f"{value}: at least 100 resamples are needed for a 95% interval")
    return value


def _report(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from lmms_eval_vreason.report.compare import compare
    from lmms_eval_vreason.report.figures import report_figures, save
    from lmms_eval_vreason.report.files import write_files
    from lmms_eval_vreason.report.runs import read_run
    from lmms_eval_vreason.report.tables import report_page, terminal, write_tables

    runs = [read_run(argument) for argument in tqdm(args.runs, desc="reading runs", disable=len(args.runs) < 2)]
    comparison = compare(runs, resamples=args.resamples, published=args.published)
    print(terminal(comparison, shutil.get_terminal_size((160, 24)).columns))
    if args.output:
        written = write_tables(comparison, args.output)
        images = {}
        for name, figure in report_figures(comparison).items():
            images[name], vector = save(figure, args.output.with_name(f"{args.output.name}-{name}"))
            written += [images[name], vector]
        _wrote(written + write_files(args.output, {".html": report_page(comparison, images)}))
    return 0


def _plot(args: argparse.Namespace) -> int:
    from lmms_eval_vreason.report.figures import save
    from lmms_eval_vreason.report.files import write_files
    from lmms_eval_vreason.report.sample_page import find_sample, find_verdict, sample_figure, sample_page, sample_title

    notices: list[str] = []
    record = find_sample(args.sample, notices)
    title = sample_title(record, find_verdict(args.sample, record, notices))
    prefix = args.output or Path(f"{record['task']}-{record['doc_id']}")
    image, vector = save(sample_figure(record, title), prefix)
    _wrote([image, vector, *write_files(prefix, {".html": sample_page(record, title, image)})])
    _say(notices)
    return 0


def _flips(args: argparse.Namespace) -> int:
    from lmms_eval_vreason.report.files import write_files
    from lmms_eval_vreason.report.flips import as_page, as_text, find_flips, summary
    from lmms_eval_vreason.report.runs import read_run

    runs = [read_run(args.first), read_run(args.second)]
    labels = (runs[0].label, runs[1].label)
    flips = find_flips(*runs)
    print(summary(flips, labels) + "\n")
    print(as_text(flips[: args.limit]))
    if args.output:
        _wrote(write_files(args.output, {".html": as_page(flips, labels), ".txt": as_text(flips)}))
    _say([f"{run.label}: {notice}" for run in runs for notice in run.notices])
    return 0


def _submit(args: argparse.Namespace) -> int:
    from lmms_eval_vreason.report.submit import submission, write_submission

    contents, notices = submission(args.benchmark, args.first, chain=args.chain)
    _wrote(write_submission(contents, args.output))
    _say(notices)
    return 0


def _wrote(paths: Sequence[Path]) -> None:
    for path in paths:
        print(f"wrote {path}")


def _say(notices: Sequence[str]) -> None:
    for notice in notices:
        print(f"Note: {notice}", file=sys.stderr)
