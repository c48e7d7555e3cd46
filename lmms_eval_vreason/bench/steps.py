"""``vreason bench``: decoding steps beside plain ``generate``, measured in interleaved rounds."""

import argparse
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from statistics import median
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from lmms_eval_vreason.bench.machine import device_of, facts, machine_line, print_table
from lmms_eval_vreason.bench.measure import Stage, clock, gated, peak_bytes, seconds_per_token, updated_share
from lmms_eval_vreason.bench.sizes import SHAPES, Prompt, random_model, shape_of
from lmms_eval_vreason.bench.stack import on_roomy_stack
from lmms_eval_vreason.bench.variants import Variant, variants

_CYCLE = 8  # the longest update_every: a run of a multiple of it has its full share of updates


def run(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The benchmark's report. Raises ValueError for what cannot be run."""
    if args.tokens % _CYCLE:
        raise ValueError(f"--tokens {args.tokens} must be a multiple of {_CYCLE}, so that every run is whole cycles")
    device, shape = device_of(args.device), shape_of(args.shape, args.layers)
    on_cuda = device.startswith("cuda")
    if args.compiled and not on_cuda:
        raise ValueError(
            f"--compiled on {device}: plain generate compiles on CUDA only, so there is nothing to compare"
        )
    args.dtype = args.dtype or ("bfloat16" if on_cuda else "float32")
    torch.set_num_threads(args.threads)
    model = random_model(shape, device=device, dtype=getattr(torch, args.dtype), attention=args.attention)
    rows, measured = variants(args.compiled, args.only), []
    for batch, video_tokens in product(args.batch, args.video_tokens):
        stage = Stage(model, Prompt.random(shape, model, batch=batch, video_tokens=video_tokens), args.tokens)
        place = {"batch": batch, "video_tokens": video_tokens}
        measured += [place | row for row in on_roomy_stack(_measured, rows, stage, args.rounds)]
    yield facts(args, shape, device) | {"clock": clock(torch.device(device).type)[0], "variants": measured}


def _measured(rows: list[Variant], stage: Stage, rounds: int) -> list[dict[str, Any]]:
    """One record a row."""
    rows = [row if row.passing is None else gated(row, stage, row.passing) for row in rows]
    # The first run of each is not timed.
    updated = {row.name: updated_share(row, stage) for row in tqdm(rows, desc="warming up", file=sys.stderr)}
    timings = _rounds(rows, stage, rounds)
    stage.prompt.kept.clear()
    short = replace(stage, tokens=_CYCLE + 1)
    peaks = {row.name: peak_bytes(row, short) / 1e6 for row in tqdm(rows, desc="memory", file=sys.stderr)}
    records = []
    for row in rows:
        seconds, plain = zip(*timings[row.name], strict=True)
        ratios = pd.Series(seconds) / pd.Series(plain)
        record = {"name": row.name, "base": row.baseline, "updated": updated[row.name], "ratio": ratios.median()}
        record |= {"ratio_quartiles": ratios.quantile([0.25, 0.75]).tolist(), "seconds_per_token": seconds}
        record |= {"seconds_per_token_of_plain_around": plain, "milliseconds_per_token": 1e3 * median(seconds)}
        record |= {"peak_megabytes": peaks[row.name], "peak_ratio": peaks[row.name] / peaks[row.baseline]}
        record |= {"megabytes_over_plain": peaks[row.name] - peaks[row.baseline]}
        records.append(record | {"min_entropy": row.method.min_entropy if row.method else None})
    return records


def _rounds(rows: list[Variant], stage: Stage, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Every variant in every round, in a new random order each time.

    A run stands between two of plain ``generate`` (of the same kind), and its ratio is to their mean: other work that
    slows the machine for a while slows all three.

    Returns:
        Name → for each run its seconds a token, and those of the runs around it.
    """
    order, shuffle, plain = list(rows), random.Random(0), {row.name: row for row in rows if row.method is None}
    timings: dict[str, list[tuple[float, float]]] = {row.name: [] for row in rows}
    last: tuple[str, float] = ("", 0.0)
    with tqdm(total=rounds * len(rows), desc="timing", unit="run", file=sys.stderr) as bar:
        for _ in range(rounds):
            shuffle.shuffle(order)
            for row in order:
                base = plain[row.baseline]
                before = last[1] if last[0] == base.name else seconds_per_token(base, stage)
                mine = seconds_per_token(row, stage)
                last = (base.name, seconds_per_token(base, stage))
                timings[row.name].append((mine, (before + last[1]) / 2))
                bar.update()
    return timings


def show(report: dict[str, Any]) -> None:
    """Prints the table and, for several numbers of video tokens, each row's growth with them."""
    shape, settings, rows = report["shape"], report["settings"], report["variants"]
    whole = SHAPES[shape["name"]].layers
    cut = "" if shape["layers"] == whole else f" of {whole} (with all of them the ratios are lower)"
    print(
        f"shape {shape['name']}: {shape['layers']} layers{cut}; {settings['dtype']}, {settings['attention']}\n"
        f"{machine_line(report)}\n"
        f"{settings['rounds']} interleaved rounds of {settings['tokens']} tokens, {report['clock']}; "
        "ratios to plain generate just before and after: median [quartiles]\n"
    )
    columns = {
        "variant": "{name}",
        "batch": "{batch}",
        "video tokens": "{video_tokens}",
        "updated": "{updated:.0%}",
        "ms/token": "{milliseconds_per_token:.2f}",
        "ratio": "{ratio:.3f}",
        "quartiles": "[{ratio_quartiles[0]:.3f}, {ratio_quartiles[1]:.3f}]",
        "peak MB": "{peak_megabytes:.1f}",
        "peak ratio": "{peak_ratio:.4f}",
        "MB over plain": "{megabytes_over_plain:.1f}",
    }
    print_table(rows, columns)
    if len(settings["video_tokens"]) > 1:
        print(f"\nOverhead with {', '.join(map(str, settings['video_tokens']))} video tokens:")
        for (name, batch), own in pd.DataFrame(rows).groupby(["name", "batch"], sort=False)["ratio"]:
            shares = ", ".join(f"{ratio - 1:.1%}" for ratio in own)
            print(f"{name}, batch {batch}: {shares}; within {own.max() - own.min():.1%}")
