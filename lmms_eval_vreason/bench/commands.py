"""``vreason bench``: the command line of the benchmark."""

import argparse

_DTYPES = ("float32", "bfloat16", "float16")
_SHAPES = ("tiny", "medium", "3b", "7b", "32b", "72b")


def _bench(args: argparse.Namespace) -> int:
    # Before torch loads: its profiler, which counts memory on a CPU, else reports missing devices.
    import os

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from lmms_eval_vreason.bench.run import run

    return run(args)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, at least 1")
    return int(text)


def add_commands(subparsers) -> None:
    """Adds this room's subcommands to the ``vreason`` parser."""
    bench = subparsers.add_parser(
        "bench",
        help="measure what the method costs beside plain generate",
        description="Times the method against plain generate on a Qwen2.5-VL shape with random weights.",
    )
    bench.add_argument("--shape", choices=_SHAPES, default="medium", help="the text decoder's shape (%(default)s)")
    bench.add_argument("--layers", type=_positive, help="keep only the last N layers; ratios are scaled to the whole")
    bench.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, …; auto: CUDA where there is one")
    bench.add_argument("--dtype", choices=_DTYPES, help="default: float32 on a CPU, bfloat16 on CUDA")
    bench.add_argument("--attention", default="sdpa", help="attn_implementation (%(default)s)")
    bench.add_argument("--cache", choices=("dynamic", "static"), default="dynamic", help="cache (%(default)s)")
    bench.add_argument("--compiled", action="store_true", help="add compiled decoding over a static cache")
    bench.add_argument("--batch", type=_positive, default=1, metavar="N", help="samples (%(default)s)")
    bench.add_argument("--video-tokens", type=_positive, default=256, metavar="N", help="a sample (%(default)s)")
    bench.add_argument("--tokens", type=_positive, default=8, metavar="N", help="timed tokens a run (%(default)s)")
    bench.add_argument("--rounds", type=_positive, default=25, metavar="N", help="runs of each variant (%(default)s)")
    bench.add_argument("--threads", type=_positive, default=1, metavar="N", help="CPU threads (%(default)s)")
    bench.add_argument("--only", metavar="TEXT", help="only plain generate and the variants whose name has TEXT in it")
    bench.add_argument("--output", default="vreason_bench.json", metavar="FILE", help="JSON file (%(default)s)")
    bench.set_defaults(run=_bench)
