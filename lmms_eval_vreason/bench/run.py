"""One run of the benchmark: build, measure in interleaved rounds, print the table, write the JSON."""

import argparse
import json
import platform
import random
import sys
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from lmms_eval_vreason.bench.measure import clock, peak_bytes, seconds_per_token
from lmms_eval_vreason.bench.sizes import SHAPES, Prompt, random_model
from lmms_eval_vreason.bench.traffic import ByteModel
from lmms_eval_vreason.bench.variants import Variant, variants

_CYCLE = 8  # the longest update_every: with a multiple of it each run has its whole share of updates
_TEXT_TOKENS = 64


class Timing(NamedTuple):
    """Seconds a token of a variant, and of plain ``generate`` around it."""

    seconds: float
    plain: float


def run(args: argparse.Namespace) -> int:
    """Runs the benchmark as the command line says. Raises ValueError for what cannot be run."""
    if args.tokens % _CYCLE:
        raise ValueError(f"--tokens {args.tokens} must be a multiple of {_CYCLE}, so that every run is whole cycles")
    whole = SHAPES[args.shape]
    shape, device = whole.cut(args.layers), device_of(args.device)
    dtype = getattr(torch, args.dtype or ("bfloat16" if device.startswith("cuda") else "float32"))
    if args.compiled and not device.startswith("cuda"):
        raise ValueError(
            f"--compiled on {device}: plain generate compiles on CUDA only, so there is nothing to compare"
        )
    torch.set_num_threads(args.threads)
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    rows = [row for row in variants(args.cache, args.compiled) if _wanted(row, args.only)]
    model = random_model(shape, device=device, dtype=dtype, attention=args.attention)
    prompt = Prompt.random(shape, model, batch=args.batch, video_tokens=args.video_tokens, text_tokens=_TEXT_TOKENS)
    timings = _rounds(rows, model, prompt, args.rounds, args.tokens)
    prompt.kept.clear()
    peaks = {row.name: peak_bytes(row, model, prompt, _CYCLE + 1) for row in tqdm(rows, desc="memory", file=sys.stderr)}

    def bytes_of(a_shape, cache: str) -> ByteModel:
        return ByteModel(
            a_shape,
            itemsize=dtype.itemsize,
            batch=args.batch,
            video_tokens=args.video_tokens,
            tokens=args.video_tokens + _TEXT_TOKENS + args.tokens // 2,
            cache=cache,
        )

    results = [
        _result(row, timings[row.name], peaks, bytes_of(shape, row.cache), bytes_of(whole, row.cache)) for row in rows
    ]
    report = {
        "shape": {"name": args.shape, **asdict(shape)},
        "cut": None if args.layers is None else {"layers": args.layers, "of": whole.layers},
        "settings": {**{k: v for k, v in vars(args).items() if k != "run"}, "device": device, "dtype": str(dtype)[6:]},
        "machine": machine(device),
        "clock": clock(model.device.type)[0],
        "tail": _tail_share(shape),
        "variants": results,
    }
    output.write_text(json.dumps(report, indent=1) + "\n")
    show(report)
    print(f"written: {output}")
    return 0


def device_of(name: str) -> str:
    """A device's name; ``auto`` is CUDA where there is one. Raises ValueError for a device that does not exist."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device {name} is none that torch knows: use auto, cpu or cuda") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices; use --device cpu")
    return name


def _wanted(row: Variant, text: str | None) -> bool:
    return text is None or row.method is None or text in row.name


def _tail_share(shape) -> float:
    return (sum(shape.layer_weights()) + shape.head_weights()) / shape.weights()


def _rounds(rows: list[Variant], model, prompt: Prompt, rounds: int, tokens: int) -> dict[str, list[Timing]]:
    """Every variant in every round, in a new random order each time, after one untimed run each.

    A run stands between two of plain ``generate`` (of the same kind), and its ratio is to their mean: a machine that
    other work slows for a while slows all three.
    """
    order, shuffle, plain = list(rows), random.Random(0), {row.name: row for row in rows if row.method is None}
    timings: dict[str, list[Timing]] = {row.name: [] for row in rows}
    with tqdm(total=(rounds + 1) * len(rows), desc="timing", unit="run", file=sys.stderr) as bar:
        for row in order:
            seconds_per_token(row, model, prompt, tokens)
            bar.update()
        last: tuple[str, float] = ("", 0.0)
        for _ in range(rounds):
            shuffle.shuffle(order)
            for row in order:
                base = plain[_base_of(row)]
                before = last[1] if last[0] == base.name else seconds_per_token(base, model, prompt, tokens)
                mine = seconds_per_token(row, model, prompt, tokens)
                last = (base.name, seconds_per_token(base, model, prompt, tokens))
                timings[row.name].append(Timing(mine, (before + last[1]) / 2))
                bar.update()
    return timings


def _result(row: Variant, timings: list[Timing], peaks: dict, cut: ByteModel, whole: ByteModel) -> dict:
    """One variant's figures, scaled to the whole shape where only some of its layers were measured."""
    base = _base_of(row)
    mine, plain = np.array(timings).T
    ratios = mine / plain
    predicted, predicted_whole = (m.ratio(row.method, full_forward=row.full_forward) for m in (cut, whole))
    # Measured over predicted excess stays; what the excess is a share of grows with the layers that are left out.
    scaled = predicted_whole + (ratios - predicted) * cut.plain() / whole.plain()
    low, median, high = np.percentile(scaled, [25, 50, 75])
    return {
        "name": row.name,
        "base": base,
        "milliseconds_per_token": float(np.median(mine) * 1e3),
        "ratio": float(median),
        "ratio_quartiles": [float(low), float(high)],
        "ratio_measured": float(np.median(ratios)),
        "predicted": float(predicted_whole),
        "peak_bytes": peaks[row.name],
        "peak_ratio": peaks[row.name] / peaks[base],
        "seconds_per_token": mine.tolist(),
        "seconds_per_token_of_plain_around": plain.tolist(),
    }


def _base_of(row: Variant) -> str:
    compiled = "compiled" in row.name
    return "plain generate, compiled" if compiled else "plain generate"


def machine(device: str) -> dict[str, str]:
    """The machine and the versions that the figures hold for."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return {
        "cpu": name,
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def show(report: dict) -> None:
    """Prints the table."""
    shape, settings, cut = report["shape"], report["settings"], report["cut"]
    where = report["machine"]
    print(
        f"shape {shape['name']}: {shape['layers']} layers, the last one and the head are {report['tail']:.1%} of the "
        f"weights; {settings['dtype']}, {settings['attention']}, batch {settings['batch']}, "
        f"{settings['video_tokens']} video tokens\n"
        f"{where['cpu'] if where['device'] == 'cpu' else where['device']}, {settings['threads']} thread(s); "
        f"torch {where['torch']}, transformers {where['transformers']}, Python {where['python']}\n"
        f"{settings['rounds']} interleaved rounds of {settings['tokens']} tokens, {report['clock']}; "
        "ratios to plain generate just before and after: median [quartiles]"
    )
    if cut:
        print(f"{cut['layers']} of {cut['of']} layers measured: ratios are scaled to the whole by the byte model")
    table = Table("variant", *(("ms/token", "ratio", "quartiles", "bytes say", "peak MB", "peak ratio")))
    for column in table.columns[1:]:
        column.justify = "right"
    for row in report["variants"]:
        low, high = row["ratio_quartiles"]
        table.add_row(
            row["name"],
            f"{row['milliseconds_per_token']:.2f}",
            f"{row['ratio']:.3f}",
            f"[{low:.3f}, {high:.3f}]".replace("[", r"\["),
            f"{row['predicted']:.3f}",
            f"{row['peak_bytes'] / 1e6:.1f}",
            f"{row['peak_ratio']:.4f}",
        )
    Console(width=120).print(table)
