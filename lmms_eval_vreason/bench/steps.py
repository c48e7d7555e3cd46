"""``vreason bench``: decoding steps beside plain ``generate``, measured in interleaved rounds."""

import argparse
import random
import sys
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from lmms_eval_vreason.bench.machine import device_of, facts, machine_line, print_table, write
from lmms_eval_vreason.bench.measure import Stage, clock, peak_bytes, seconds_per_token
from lmms_eval_vreason.bench.sizes import SHAPES, Prompt, random_model
from lmms_eval_vreason.bench.traffic import ByteModel
from lmms_eval_vreason.bench.variants import Variant, variants

_CYCLE = 8  # the longest update_every: a run of a multiple of it has its full share of updates
_TEXT_TOKENS = 64


def run(args: argparse.Namespace) -> int:
    """Runs the benchmark as the command line says. Raises ValueError for what cannot be run."""
    if args.tokens % _CYCLE:
        raise ValueError(f"--tokens {args.tokens} must be a multiple of {_CYCLE}, so that every run is whole cycles")
    device, whole = device_of(args.device), SHAPES[args.shape]
    on_cuda = device.startswith("cuda")
    if args.compiled and not on_cuda:
        raise ValueError(
            f"--compiled on {device}: plain generate compiles on CUDA only, so there is nothing to compare"
        )
    shape = whole.cut(args.layers)
    args.dtype = args.dtype or ("bfloat16" if on_cuda else "float32")
    torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    model = random_model(shape, device=device, dtype=dtype, attention=args.attention)
    prompt = Prompt.random(shape, model, batch=args.batch, video_tokens=args.video_tokens, text_tokens=_TEXT_TOKENS)
    rows = variants(args.compiled)
    rows = [row for row in rows if args.only is None or row.method is None or args.only in row.name]
    stage = Stage(model, prompt, args.tokens)
    timings = _rounds(rows, stage, args.rounds)
    prompt.kept.clear()
    memory = replace(stage, tokens=_CYCLE + 1)
    peaks = {row.name: peak_bytes(row, memory) for row in tqdm(rows, desc="memory", file=sys.stderr)}
    tokens = args.video_tokens + _TEXT_TOKENS + args.tokens // 2
    cut = ByteModel(shape, dtype.itemsize, args.batch, args.video_tokens, tokens)
    report = facts(args, shape, device) | {
        "cut": None if args.layers is None else {"layers": args.layers, "of": whole.layers},
        "clock": clock(torch.device(device).type)[0],
        "tail": shape.tail_share(),
        "variants": [
            {**_ratios(row, timings[timings["name"] == row.name], cut, replace(cut, shape=whole)), **_peaks(row, peaks)}
            for row in rows
        ],
    }
    write(report, args.output)
    show(report)
    print(f"written: {args.output}")
    return 0


def _rounds(rows: list[Variant], stage: Stage, rounds: int) -> pd.DataFrame:
    """Every variant in every round, in a new random order each time, after one untimed run each.

    A run stands between two of plain ``generate`` (of the same kind), and its ratio is to their mean: other work that
    slows the machine for a while slows all three.

    Returns:
        A line for each run: its variant's ``name``, its ``seconds`` a token, and as ``plain`` those of the runs around
        it.
    """
    order, shuffle, plain = list(rows), random.Random(0), {row.name: row for row in rows if row.method is None}
    timings = []
    with tqdm(total=(rounds + 1) * len(rows), desc="timing", unit="run", file=sys.stderr) as bar:
        for row in order:
            seconds_per_token(row, stage)
            bar.update()
        last: tuple[str, float] = ("", 0.0)
        for _ in range(rounds):
            shuffle.shuffle(order)
            for row in order:
                base = plain[row.baseline]
                before = last[1] if last[0] == base.name else seconds_per_token(base, stage)
                mine = seconds_per_token(row, stage)
                last = (base.name, seconds_per_token(base, stage))
                timings.append({"name": row.name, "seconds": mine, "plain": (before + last[1]) / 2})
                bar.update()
    return pd.DataFrame(timings)


def _ratios(row: Variant, timings: pd.DataFrame, cut: ByteModel, whole: ByteModel) -> dict[str, Any]:
    """One variant's times, scaled to the whole shape if only some of its layers were measured."""
    ratios = timings["seconds"] / timings["plain"]
    cut, whole = (replace(model, cache=row.cache) for model in (cut, whole))
    predicted, predicted_whole = (model.ratio(row.method, full_forward=row.full_forward) for model in (cut, whole))
    # The measured excess over the prediction stays; its share of a token shrinks by the layers that were left out.
    scaled = predicted_whole + (ratios - predicted) * cut.plain() / whole.plain()
    return {
        "name": row.name,
        "base": row.baseline,
        "milliseconds_per_token": timings["seconds"].median() * 1e3,
        "ratio": scaled.median(),
        "ratio_quartiles": scaled.quantile([0.25, 0.75]).tolist(),
        "ratio_measured": ratios.median(),
        "predicted": predicted_whole,
        "seconds_per_token": timings["seconds"].tolist(),
        "seconds_per_token_of_plain_around": timings["plain"].tolist(),
    }


def _peaks(row: Variant, peaks: dict[str, int]) -> dict[str, Any]:
    return {"peak_bytes": peaks[row.name], "peak_ratio": peaks[row.name] / peaks[row.baseline]}


def show(report: dict[str, Any]) -> None:
    """Prints the table."""
    shape, settings, cut = report["shape"], report["settings"], report["cut"]
    print(
        f"shape {shape['name']}: {shape['layers']} layers, the last one and the head are {report['tail']:.1%} of the "
        f"weights; {settings['dtype']}, {settings['attention']}, batch {settings['batch']}, "
        f"{settings['video_tokens']} video tokens\n{machine_line(report)}\n"
        f"{settings['rounds']} interleaved rounds of {settings['tokens']} tokens, {report['clock']}; "
        "ratios to plain generate just before and after: median [quartiles]"
    )
    if cut:
        print(f"{cut['layers']} of {cut['of']} layers measured: ratios are scaled to the whole by the byte model")
    print()
    columns = {
        "variant": "{name}",
        "ms/token": "{milliseconds_per_token:.2f}",
        "ratio": "{ratio:.3f}",
        "quartiles": "[{ratio_quartiles[0]:.3f}, {ratio_quartiles[1]:.3f}]",
        "predicted": "{predicted:.3f}",
        "peak MB": "{megabytes:.1f}",
        "peak ratio": "{peak_ratio:.4f}",
    }
    print_table([{**row, "megabytes": row["peak_bytes"] / 1e6} for row in report["variants"]], columns)
