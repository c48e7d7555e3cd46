"""The ``vreason`` subcommand of this room."""

import argparse
from pathlib import Path
from typing import Any

from lmms_eval_vreason.adapter.kinds import KINDS


def add_commands(subparsers: Any) -> None:
    """Adds ``calibrate``."""
    parser = subparsers.add_parser("calibrate", help="how strongly settings act on your model and task; no labels used")
    parser.add_argument("--model", default="qwen2_5_vl_vreason", choices=KINDS, help="(default: %(default)s)")
    parser.add_argument("--model_args", required=True, help="as for lmms-eval")
    parser.add_argument("--tasks", required=True, help="as for lmms-eval; this package's tasks are known")
    parser.add_argument("--include_path", help="a folder with further tasks")
    parser.add_argument("--limit", type=int, default=16, help="samples of each task (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=4, help="samples replayed together (default: %(default)s)")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="the most of an answer (default: %(default)s)")
    parser.add_argument("--settings", type=Path, metavar="FILE.yaml", help="name: {argument: value} (default: a grid)")
    parser.add_argument("--output", type=Path, default=Path("calibration"), help="folder (default: %(default)s)")
    parser.set_defaults(run=_calibrate)


def _calibrate(args: argparse.Namespace) -> int:
    # Imports torch and lmms-eval, which no other subcommand should wait for.
    from lmms_eval_vreason.adapter.host import parse_pairs
    from lmms_eval_vreason.adapter.options import parse_options
    from lmms_eval_vreason.calibrate import tables
    from lmms_eval_vreason.calibrate.requests import first_requests
    from lmms_eval_vreason.calibrate.settings import as_model_args, read_settings
    from lmms_eval_vreason.report.figures import save

    for name in ("limit", "batch_size", "max_new_tokens"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} {getattr(args, name)} must be at least 1")
    given = parse_pairs("--model_args", args.model_args)
    arguments = {name: {**given, **own} for name, own in read_settings(args.settings).items()}
    fixed = {"journal": "off", "compile": "off"}  # Replays of different lengths would compile again and again.
    kind = KINDS[args.model]
    methods = {name: parse_options({**own, **fixed}, kind).method for name, own in arguments.items()}
    requests, documents = first_requests(args.tasks, args.limit, args.include_path, args.model)
    args.output.mkdir(parents=True, exist_ok=True)

    from lmms_eval_vreason.adapter import model
    from lmms_eval_vreason.calibrate.measure import Sizes, measure

    lm = getattr(model, kind.class_name)(**{**given, **fixed, "policy": "off"})
    lm.task_dict = documents
    sizes = Sizes(args.batch_size, args.max_new_tokens)
    lines = measure(lm, lm.samples(requests), methods, sizes, args.output / "replays.jsonl")
    rows = tables.table(lines)
    rows.to_csv(args.output / "table.csv")
    image, _ = save(tables.entropy_figure(lines), args.output / "entropy")
    print(tables.as_text(rows))
    best = tables.recommended(rows, {name: method.policy for name, method in methods.items()})
    print(f"\n{tables.RULE}")
    print(f"{best}: --model_args {as_model_args(arguments[best])}" if best else "No setting is within these bounds.")
    print(f"wrote {args.output / 'table.csv'}, {image}")
    return 0
