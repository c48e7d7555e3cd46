"""``vreason bench --end-to-end``: the stock class and ours on one task through lmms-eval's own command, in turns."""

import argparse
import random
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm
from transformers.utils.import_utils import is_flash_attn_2_available

from lmms_eval_vreason.bench.command_runs import Measurement, Row, Setup, execute
from lmms_eval_vreason.bench.fixture import Fixture
from lmms_eval_vreason.bench.machine import device_of, facts, machine_line, print_table
from lmms_eval_vreason.bench.sizes import shape_of

# The rows that ratios are to: lmms-eval's own class, and ours without the method at the same batch size.
STOCK, OFF = "stock", "ours, policy=off"
_COLUMNS = {
    "run": "{name}, batch {batch}, {dtype}",
    "samples/min": "{samples_per_minute:.1f}",
    "x stock": "{ratio_stock}",
    "x policy=off": "{ratio_off}",
    "peak MB": "{megabytes:.0f}",
    "answers as stock": "{same_answers}",
}
# The prompt, the budget and the positions of the stock class.
_AS_STOCK = "thinking=off,positions=transformers"
_OURS = {
    OFF: f"{_AS_STOCK},policy=off",
    "ours, V-Reason": _AS_STOCK,
    "ours, Lite": f"{_AS_STOCK},prune_ratio=0.5",
}


def run(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The benchmark's report, after each round again. Raises ValueError for what cannot be run."""
    device, (video_tokens, *more) = device_of(args.device), args.video_tokens
    if more:
        raise ValueError("--end-to-end takes one number of --video-tokens")
    if args.shape.endswith("b") and device == "cpu":
        raise ValueError(f"--shape {args.shape} takes days on a CPU: use --device cuda, or --shape narrow or medium")
    args.attention = _attention(args.attention, device)
    shape, rows = shape_of(args.shape, args.layers), all_rows(args.batch, args.dtype, device)
    rows = [row for row in rows if row.name == STOCK or any(text in row.label for text in args.only)]
    # Other processes on the machine lengthen the wall time, but not a single thread's CPU time.
    clock = "CPU" if device == "cpu" and args.threads == 1 else "wall"
    # Ended by SIGTERM, a run leaves no checkpoint and no process behind, as with Ctrl-C.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="vreason-bench-") as name:
        fixture = Fixture(Path(name), args.videos, args.questions, video_tokens)
        fixture.write(shape, device)
        setup = Setup(fixture, device, args.attention, args.tokens, args.threads)
        report = facts(args, shape, device) | {"video_tokens": fixture.video_tokens, "clock": clock}
        for measured in rounds(setup, rows, args.rounds):
            yield report | {"rows": summary(measured, clock)}


def all_rows(batch_sizes: list[int], dtype: str | None, device: str) -> list[Row]:
    """Every row, with both classes in ``dtype`` or, for None, each in the one that it loads by itself."""
    own = dtype or ("float32" if device == "cpu" else "bfloat16")
    # The stock class loads bfloat16 on any device.
    rows = [Row(STOCK, "qwen2_5_vl", f"device_map={device}", 1, dtype or "bfloat16")]
    for batch in batch_sizes:
        for name, arguments in _OURS.items():
            rows.append(Row(name, "qwen2_5_vl_vreason", f"{arguments},dtype={own}", batch, own))
    return rows


def _attention(name: str | None, device: str) -> str:
    flash = device.startswith("cuda") and is_flash_attn_2_available()
    if name == "flash_attention_2" and not flash:
        raise ValueError(f"--attention {name}: there is no flash attention for {device} here; use --attention sdpa")
    return name or ("flash_attention_2" if flash else "sdpa")


def rounds(setup: Setup, rows: list[Row], count: int) -> Iterator[dict[Row, list[Measurement]]]:
    """Runs every row once a round, in a new random order each time; yields all measurements after each round.

    Before several rounds one short run warms the disk's cache, so that the first round is like the others.
    """
    shuffle = random.Random(0)
    measured: dict[Row, list[Measurement]] = {row: [] for row in rows}
    # The rows' runs differ in length, so the estimate of what is left goes by the mean of all, not of the last few.
    with tqdm(total=count * len(rows), desc="starting", unit="run", file=sys.stderr, smoothing=0) as bar:
        if count > 1:
            execute(rows[-1], replace(setup, tokens=1))
        for number in range(count):
            for row in shuffle.sample(rows, len(rows)):
                bar.set_description(f"round {number + 1} of {count}, {row.label}")
                measured[row].append(execute(row, setup))
                bar.update()
            yield measured


def summary(measured: Mapping[Row, Sequence[Measurement]], clock: str) -> list[dict[str, Any]]:
    """One record a row: its speed, and the ratios of it to the base rows' speed in the same round.

    Args:
        measured: Row → its measurements, one a round.
        clock: Which seconds count, ``wall`` or ``CPU``.
    """
    times = {(row.name, row.batch): pd.Series([run.seconds[clock] for run in runs]) for row, runs in measured.items()}
    stock = next(iter(measured))
    texts = measured[stock][0].texts.items()
    records = []
    for row, runs in measured.items():
        own, off = times[row.name, row.batch], times.get((OFF, row.batch))
        same = sum(text == runs[0].texts[doc] for doc, text in texts) if row.dtype == stock.dtype else None
        records.append(
            {
                **{"name": row.name, "batch": row.batch, "dtype": row.dtype},
                "samples_per_minute": 60 * len(texts) / own.median(),
                "ratio_stock": _quartiles(times[STOCK, 1] / own),
                "ratio_off": None if off is None or row == stock else _quartiles(off / own),
                "seconds": [run.seconds for run in runs],
                "peak_bytes": max(run.peak_bytes for run in runs),
                "same_answers": same,
            }
        )
    return records


def _quartiles(values: "pd.Series[float]") -> list[float]:
    """[first quartile, median, third quartile]."""
    return [float(value) for value in values.quantile([0.25, 0.5, 0.75])]


def show(report: dict[str, Any]) -> None:
    """Prints the setting and the table; an absent figure is an empty cell."""
    settings, shape = report["settings"], report["shape"]
    print(
        f"\nshape {shape['name']}: {shape['layers']} layers of width {shape['hidden_size']}; "
        f"{settings['videos']} videos x {settings['questions']} questions, {report['video_tokens']} video tokens, "
        f"{settings['tokens']} new tokens a sample\n{machine_line(report)}; {settings['attention']}\n"
        f"{settings['rounds']} interleaved rounds, {report['clock']} time of generate_until; ratios of speed to the "
        "same round's run: median [quartiles]\n"
    )
    rows = []
    for row in report["rows"]:
        cells = {name: "" if value is None else value for name, value in row.items()}
        for name in ("ratio_stock", "ratio_off"):
            cells[name] = "{1:.2f} [{0:.2f}, {2:.2f}]".format(*row[name]) if row[name] else ""
        rows.append({**cells, "megabytes": row["peak_bytes"] / 1e6})
    print_table(rows, _COLUMNS)
