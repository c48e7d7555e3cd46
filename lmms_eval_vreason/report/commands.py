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

    doctor = subparsers.add_parser("doctor", help="what in a run would make its numbers differ from others'")
    doctor.add_argument("first", metavar="RUN", help=_RUN)
    doctor.add_argument("--transformers", metavar="VERSION", help="its version, of a run that does not record it "
                        "(default: the one installed here)")  # fmt: skip
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(run=_doctor)

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

    from lmms_eval_vreason.report import compare, figures, files, runs, tables

    read = [runs.read_run(argument) for argument in tqdm(args.runs, desc="reading runs", disable=len(args.runs) < 2)]
    comparison = compare.compare(read, resamples=args.resamples, published=args.published)
    print(tables.terminal(comparison, shutil.get_terminal_size((160, 24)).columns))
    if args.output:
        written, images = tables.write_tables(comparison, args.output), {}
        for name, figure in figures.report_figures(comparison).items():
            images[name], vector = figures.save(figure, args.output.with_name(f"{args.output.name}-{name}"))
            written += [images[name], vector]
        _wrote(written + files.write_files(args.output, {".html": tables.report_page(comparison, images)}))
    return 0


def _plot(args: argparse.Namespace) -> int:
    from lmms_eval_vreason.report import figures, files, sample_page

    notices: list[str] = []
    record = sample_page.find_sample(args.sample, notices)
    title = sample_page.sample_title(record, sample_page.find_verdict(args.sample, record, notices))
    prefix = args.output or Path(f"{record['task']}-{record['doc_id']}")
    image, vector = figures.save(sample_page.sample_figure(record, title), prefix)
    page = files.write_files(prefix, {".html": sample_page.sample_page(record, title, image)})
    _wrote([image, vector, *page])
    _say(notices)
    return 0


def _flips(args: argparse.Namespace) -> int:
    from lmms_eval_vreason.report import files, flips
    from lmms_eval_vreason.report.runs import read_run

    runs = [read_run(args.first), read_run(args.second)]
    labels = (runs[0].label, runs[1].label)
    found = flips.find_flips(*runs)
    print(flips.summary(found, labels) + "\n")
    print(flips.as_text(found[: args.limit]))
    if args.output:
        contents = {".html": flips.as_page(found, labels), ".txt": flips.as_text(found)}
        _wrote(files.write_files(args.output, contents))
    _say([f"{run.label}: {notice}" for run in runs for notice in run.notices])
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from lmms_eval_vreason.report.doctor.examine import as_json, as_text, examine

    diagnosis = examine(args.first, args.transformers)
    print(as_json(diagnosis) if args.json else as_text(diagnosis, shutil.get_terminal_size((120, 24)).columns))
    return int(diagnosis.spoiled)


def _submit(args: argparse.Namespace) -> int:
    from lmms_eval_vreason.report import submit

    contents, notices = submit.submission(args.benchmark, args.first, chain=args.chain)
    _wrote(submit.write_submission(contents, args.output))
    _say(notices)
    return 0


def _wrote(paths: Sequence[Path]) -> None:
    for path in paths:
        print(f"wrote {path}")


def _say(notices: Sequence[str]) -> None:
    for notice in notices:
        print(f"Note: {notice}", file=sys.stderr)
