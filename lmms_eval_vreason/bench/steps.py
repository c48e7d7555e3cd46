"""``vreason bench``: decoding steps beside plain ``generate``, measured in interleaved rounds."""

import argparse
import json
import random
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from lmms_eval_vreason.bench.machine import device_of, machine, machine_line, print_table, settings_of
from lmms_eval_vreason.bench.measure import clock, peak_bytes, seconds_per_token
from lmms_eval_vreason.bench.sizes import SHAPES, Prompt, Shape, random_model
from lmms_eval_vreason.bench.traffic import ByteModel
from lmms_eval_vreason.bench.variants import Variant, variants

_CYCLE = 8  # the longest update_every: a run of a multiple of it has its full share of updates
_TEXT_TOKENS = 64


class Timing(NamedTuple):
    """Seconds a token of a variant, and of the runs of plain ``generate`` around it."""

    seconds: float
    plain: float


@dataclass(frozen=True)
class Bench:
    """What the command line asks for: ``shape`` is what is measured, ``whole`` what it was cut from."""

    args: argparse.Namespace
    shape: Shape
    whole: Shape
    device: str
    dtype: torch.dtype

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Bench":
        """Raises ValueError for what cannot be run."""
        if args.tokens % _CYCLE:
            raise ValueError(
                f"--tokens {args.tokens} must be a multiple of {_CYCLE}, so that every run is whole cycles"
            )
        device, whole = device_of(args.device), SHAPES[args.shape]
        on_cuda = device.startswith("cuda")
        if args.compiled and not on_cuda:
            raise ValueError(
                f"--compiled on {device}: plain generate compiles on CUDA only, so there is nothing to compare"
            )
        dtype = getattr(torch, args.dtype or ("bfloat16" if on_cuda else "float32"))
        return cls(args, whole.cut(args.layers), whole, device, dtype)

    def byte_model(self, shape: Shape, cache: str) -> ByteModel:
        args = self.args
        tokens = args.video_tokens + _TEXT_TOKENS + args.tokens // 2
        return ByteModel(shape, self.dtype.itemsize, args.batch, args.video_tokens, tokens, cache)

    def measure(self) -> list[dict[str, Any]]:
        """Runs all variants; one record each."""
        args = self.args
        rows = variants(args.cache, args.compiled)
        rows = [row for row in rows if args.only is None or row.method is None or args.only in row.name]
        model = random_model(self.shape, device=self.device, dtype=self.dtype, attention=args.attention)
        prompt = Prompt.random(
            self.shape, model, batch=args.batch, video_tokens=args.video_tokens, text_tokens=_TEXT_TOKENS
        )
        timings = _rounds(rows, model, prompt, args.rounds, args.tokens)
        prompt.kept.clear()
        bar = tqdm(rows, desc="memory", file=sys.stderr)
        peaks = {row.name: peak_bytes(row, model, prompt, _CYCLE + 1) for row in bar}
        return [self._result(row, timings[row.name], peaks) for row in rows]

    def _result(self, row: Variant, timings: list[Timing], peaks: dict[str, int]) -> dict[str, Any]:
        """One variant's figures, scaled to the whole shape if only some of its layers were measured."""
        mine, plain = np.array(timings).T
        ratios = mine / plain
        cut, whole = (self.byte_model(shape, row.cache) for shape in (self.shape, self.whole))
        predicted, predicted_whole = (m.ratio(row.method, full_forward=row.full_forward) for m in (cut, whole))
        # The measured excess over the prediction stays; its share of a token shrinks by the layers that were left out.
        scaled = predicted_whole + (ratios - predicted) * cut.plain() / whole.plain()
        low, median, high = np.percentile(scaled, [25, 50, 75])
        return {
            "name": row.name,
            "base": row.baseline,
            "milliseconds_per_token": float(np.median(mine) * 1e3),
            "ratio": float(median),
            "ratio_quartiles": [float(low), float(high)],
            "ratio_measured": float(np.median(ratios)),
            "predicted": float(predicted_whole),
            "peak_bytes": peaks[row.name],
            "peak_ratio": peaks[row.name] / peaks[row.baseline],
            "seconds_per_token": mine.tolist(),
            "seconds_per_token_of_plain_around": plain.tolist(),
        }


def run(args: argparse.Namespace) -> int:
    """Runs the benchmark as the command line says. Raises ValueError for what cannot be run."""
    bench = Bench.of(args)
    torch.set_num_threads(args.threads)
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "shape": {"name": args.shape, **asdict(bench.shape)},
        "cut": None if args.layers is None else {"layers": args.layers, "of": bench.whole.layers},
        "settings": {**settings_of(args), "device": bench.device, "dtype": str(bench.dtype).removeprefix("torch.")},
        "machine": machine(bench.device),
        "clock": clock(torch.device(bench.device).type)[0],
        "tail": bench.shape.tail_share(),
        "variants": bench.measure(),
    }
    output.write_text(json.dumps(report, indent=1) + "\n")
    show(report)
    print(f"written: {output}")
    return 0


def _rounds(
    rows: list[Variant], model: PreTrainedModel, prompt: Prompt, rounds: int, tokens: int
) -> dict[str, list[Timing]]:
    """Every variant in every round, in a new random order each time, after one untimed run each.

    A run stands between two of plain ``generate`` (of the same kind), and its ratio is to their mean: other work that
    slows the machine for a while slows all three.
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
                base = plain[row.baseline]
                before = last[1] if last[0] == base.name else seconds_per_token(base, model, prompt, tokens)
                mine = seconds_per_token(row, model, prompt, tokens)
                last = (base.name, seconds_per_token(base, model, prompt, tokens))
                timings[row.name].append(Timing(mine, (before + last[1]) / 2))
                bar.update()
    return timings


def show(report: dict[str, Any]) -> None:
    """Prints the table."""
    shape, settings, cut, rows = report["shape"], report["settings"], report["cut"], report["variants"]
    print(
        f"shape {shape['name']}: {shape['layers']} layers, the last one and the head are {report['tail']:.1%} of the "
        f"weights; {settings['dtype']}, {settings['attention']}, batch {settings['batch']}, "
        f"{settings['video_tokens']} video tokens\n{machine_line(report['machine'], settings['threads'])}\n"
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
    rows = [{**row, "megabytes": row["peak_bytes"] / 1e6} for row in rows]
    print_table({head: [cell.format(**row) for row in rows] for head, cell in columns.items()})
