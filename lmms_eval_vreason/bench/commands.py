"""``vreason bench``: the command line of the benchmarks."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

# Defaults of each benchmark, for the options whose default or use differs; one that is missing is not the benchmark's.
_STEPS: dict[str, Any] = {"shape": "medium", "attention": "sdpa", "video_tokens": 256, "tokens": 8, "rounds": 25}
_STEPS |= {"compiled": False, "batch": 1, "output": "vreason_bench.json"}
_END_TO_END: dict[str, Any] = {"shape": "narrow", "attention": None, "video_tokens": 400, "tokens": 128, "rounds": 3}
_END_TO_END |= {"batch_sizes": [1, 4, 8], "videos": 4, "questions": 12, "reading_delay": None}
_END_TO_END |= {"output": "vreason_end_to_end.json"}


def _bench(args: argparse.Namespace) -> int:
    # Before torch loads: its profiler, which counts memory on a CPU, otherwise reports missing devices.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    own, others = (_END_TO_END, _STEPS) if args.end_to_end else (_STEPS, _END_TO_END)
    for name in others.keys() - own.keys():
        if vars(args).pop(name) is not None:
            without = "does not go with" if args.end_to_end else "needs"
            raise ValueError(f"--{name.replace('_', '-')} {without} --end-to-end")
    for name, value in own.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    # Now, so that a folder that cannot be made is an error before the first run.
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    if args.end_to_end:
        from lmms_eval_vreason.bench.end_to_end import run
    else:
        from lmms_eval_vreason.bench.steps import run
    return run(args)


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
    attentions, dtypes = ("sdpa", "eager", "flash_attention_2"), ("float32", "bfloat16", "float16")
    shapes = ("tiny", "narrow", "medium", "3b", "7b", "32b", "72b")
    add("--end-to-end", action="store_true", help="measure whole runs of lmms-eval's command")
    add("--shape", choices=shapes, help="the model's shape (medium; end to end narrow)")
    add("--layers", **count, help="keep only the last N layers; the ratios of steps are scaled")
    add("--device", default="auto", help="cpu, cuda, cuda:1, …; auto: CUDA if there is one")
    add("--dtype", choices=dtypes, help="float32 on a CPU, bfloat16 on CUDA; end to end each class's own")
    add("--attention", choices=attentions, help="default sdpa; end to end flash attention if there is one")
    add("--video-tokens", **count, help="video tokens of each sample (256; end to end about 400)")
    add("--tokens", **count, help="tokens timed in each run (8), or end to end generated for each sample (128)")
    add("--rounds", **count, help="runs of each row (25; end to end 3)")
    add("--threads", **count, default=1, help="CPU threads (%(default)s)")
    add("--only", metavar="TEXT", help="only the baselines and the rows whose name contains TEXT")
    add("--output", metavar="FILE", help="JSON file (vreason_bench.json, vreason_end_to_end.json)")
    add = bench.add_argument_group("decoding steps").add_argument
    add("--compiled", action="store_true", default=None, help="add compiled steps over a static cache")
    add("--batch", **count, help="samples (1)")
    add = bench.add_argument_group("end to end").add_argument
    add("--batch-sizes", type=_several, metavar="N,N,…", help="batch sizes of our rows (1,4,8)")
    add("--videos", **count, help="videos (4)")
    add("--questions", **count, help="questions on each video (12)")
    slowed = "run each row a second time with this delay before each video is read"
    add("--reading-delay", type=float, metavar="SECONDS", help=slowed)
