"""``vreason bench``: the command line of the benchmarks."""

import argparse
from typing import Any

_DTYPES = ("float32", "bfloat16", "float16")
_SHAPES = ("tiny", "narrow", "medium", "3b", "7b", "32b", "72b")
# What each benchmark takes, besides what both do, and what it takes where nothing is given.
_STEPS: dict[str, Any] = {
    "shape": "medium",
    "attention": "sdpa",
    "cache": "dynamic",
    "compiled": False,
    "batch": 1,
    "video_tokens": 256,
    "tokens": 8,
    "rounds": 25,
    "output": "vreason_bench.json",
}
_END_TO_END: dict[str, Any] = {
    "shape": "narrow",
    "attention": None,
    "batch_sizes": [1, 4, 8],
    "videos": 4,
    "questions": 12,
    "reading_delay": None,
    "video_tokens": 400,
    "tokens": 128,
    "rounds": 3,
    "output": "vreason_end_to_end.json",
}


def _bench(args: argparse.Namespace) -> int:
    # Before torch loads: its profiler, which counts memory on a CPU, else reports missing devices.
    import os

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    own, others = (_END_TO_END, _STEPS) if args.end_to_end else (_STEPS, _END_TO_END)
    for name in others.keys() - own.keys():
        if vars(args).pop(name) is not None:
            without = "does not go with" if args.end_to_end else "needs"
            raise ValueError(f"--{name.replace('_', '-')} {without} --end-to-end")
    for name, value in own.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.end_to_end:
        from lmms_eval_vreason.bench.end_to_end import run
    else:
        from lmms_eval_vreason.bench.run import run
    return run(args)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, at least 1")
    return int(text)


def _several(text: str) -> list[int]:
    return list(dict.fromkeys(_positive(part) for part in text.split(",")))


def add_commands(subparsers) -> None:
    """Adds this room's subcommands to the ``vreason`` parser."""
    bench = subparsers.add_parser(
        "bench",
        help="measure what the method costs beside plain generate, or whole runs beside lmms-eval's own class",
        description="Times the method on a Qwen2.5-VL shape with random weights: decoding steps beside plain generate, "
        "or, with --end-to-end, whole runs of lmms-eval's command beside its own qwen2_5_vl class.",
    )
    bench.add_argument("--end-to-end", action="store_true", help="measure whole runs of lmms-eval's command")
    bench.add_argument("--shape", choices=_SHAPES, help="the text decoder's shape (medium; end to end narrow)")
    bench.add_argument("--layers", type=_positive, help="keep only the last N layers; steps' ratios are scaled")
    bench.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, …; auto: CUDA where there is one")
    bench.add_argument("--dtype", choices=_DTYPES, help="float32 on a CPU, bfloat16 on CUDA; end to end each its own")
    bench.add_argument("--attention", help="attn_implementation (sdpa; end to end flash attention where there is one)")
    bench.add_argument("--video-tokens", type=_positive, metavar="N", help="a sample (256; end to end about 400)")
    bench.add_argument("--tokens", type=_positive, metavar="N", help="timed a run (8), or end to end a sample (128)")
    bench.add_argument("--rounds", type=_positive, metavar="N", help="runs of each row (25; end to end 3)")
    bench.add_argument("--threads", type=_positive, default=1, metavar="N", help="CPU threads (%(default)s)")
    bench.add_argument("--only", metavar="TEXT", help="only what ratios are to, and the rows whose name has TEXT in it")
    bench.add_argument("--output", metavar="FILE", help="JSON file (vreason_bench.json, vreason_end_to_end.json)")
    steps = bench.add_argument_group("decoding steps")
    steps.add_argument("--cache", choices=("dynamic", "static"), help="cache (dynamic)")
    steps.add_argument("--compiled", action="store_true", default=None, help="add compiled steps over a static cache")
    steps.add_argument("--batch", type=_positive, metavar="N", help="samples (1)")
    whole = bench.add_argument_group("end to end")
    whole.add_argument("--batch-sizes", type=_several, metavar="N,N,…", help="of our rows (1,4,8)")
    whole.add_argument("--videos", type=_positive, metavar="N", help="videos (4)")
    whole.add_argument("--questions", type=_positive, metavar="N", help="questions on each video (12)")
    whole.add_argument(
        "--reading-delay",
        metavar="SECONDS|SHARE%",
        help="run each row a second time with a delay before each video is read: seconds, or delays that add up to "
        "this share of the generation time, as 50%%",
    )
    bench.set_defaults(run=_bench)
