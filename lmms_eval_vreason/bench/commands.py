"""``vreason bench``: the command line of the benchmarks."""

import argparse
import json
import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_UNUSED = object()
# Options that differ → the default of decoding steps, and that of whole runs.
_DEFAULTS: dict[str, tuple[Any, Any]] = {
    "shape": ("medium", "narrow"),
    "attention": ("sdpa", None),
    "video_tokens": ([256], [400]),
    "batch": ([1], [1, 4, 8]),
    "tokens": (32, 128),
    "rounds": (25, 5),
    "output": ("vreason_bench.json", "vreason_end_to_end.json"),
    "compiled": (False, _UNUSED),
    "videos": (_UNUSED, 4),
    "questions": (_UNUSED, 12),
}


def _bench(args: argparse.Namespace) -> int:
    # Before torch loads: its profiler, which counts memory on a CPU, otherwise reports missing devices.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    for name, defaults in _DEFAULTS.items():
        given, default = vars(args).pop(name), defaults[args.end_to_end]
        if default is not _UNUSED:
            setattr(args, name, default if given is None else given)
        elif given is not None:
            raise ValueError(f"--{name} {'does not go with' if args.end_to_end else 'needs'} --end-to-end")
    benchmark = import_module(f"lmms_eval_vreason.bench.{'end_to_end' if args.end_to_end else 'steps'}")
    # Now, so that a folder that cannot be made is an error before the first run.
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {}
    for report in benchmark.run(args):
        # After each round, so that a run that is stopped leaves what it has measured.
        output.write_text(json.dumps(report, indent=1) + "\n")
    benchmark.show(report)
    print(f"written: {output}")
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, at least 1")
    return int(text)


def _several(text: str) -> list[int]:
    return list(dict.fromkeys(_positive(part) for part in text.split(",")))


def add_commands(subparsers: "Subparsers") -> None:
    """Adds this room's subcommands to the ``vreason`` parser."""
    bench = subparsers.add_parser(
        "bench",
        help="measure what the method costs beside plain generate, or whole runs beside lmms-eval's own class",
        description="Times the method on a Qwen2.5-VL shape with random weights: decoding steps beside plain generate, "
        "or, with --end-to-end, whole runs of lmms-eval's command beside its own qwen2_5_vl class.",
    )
    bench.set_defaults(run=_bench)
    add = bench.add_argument
    count: dict[str, Any] = {"type": _positive, "metavar": "N"}
    several: dict[str, Any] = {"type": _several, "metavar": "N,N,…"}
    attentions, dtypes = ("sdpa", "eager", "flash_attention_2"), ("float32", "bfloat16", "float16")
    shapes = ("tiny", "narrow", "medium", "3b", "7b", "32b", "72b")
    add("--end-to-end", action="store_true", help="measure whole runs of lmms-eval's command")
    add("--shape", choices=shapes, help="the model's shape (medium; end to end narrow)")
    add("--layers", **count, help="keep only the last N layers")
    add("--device", default="auto", help="cpu, cuda, cuda:1, …; auto: CUDA if there is one")
    add("--dtype", choices=dtypes, help="float32 on a CPU, bfloat16 on CUDA; end to end each class's own")
    add("--attention", choices=attentions, help="default sdpa; end to end flash attention if there is one")
    add("--video-tokens", **several, help="video tokens of each sample (256; end to end one number, about 400)")
    add("--batch", **several, help="samples decoded together (1; end to end, in our rows, 1,4,8)")
    add("--tokens", **count, help="tokens timed in each run (32), or end to end generated for each sample (128)")
    add("--rounds", **count, help="runs of each row (25; end to end 5)")
    add("--threads", **count, default=1, help="CPU threads (%(default)s)")
    add("--only", nargs="+", default=[""], metavar="TEXT", help="only the baselines and rows with a TEXT in their name")
    add("--output", metavar="FILE", help="JSON file (vreason_bench.json, vreason_end_to_end.json)")
    add = bench.add_argument_group("decoding steps").add_argument
    add("--compiled", action="store_true", default=None, help="add compiled steps over a static cache")
    add = bench.add_argument_group("end to end").add_argument
    add("--videos", **count, help="videos (4)")
    add("--questions", **count, help="questions on each video (12)")
