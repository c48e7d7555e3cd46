"""``vreason bench --end-to-end``: the stock class and ours on one task through lmms-eval's own command, in turns."""

import argparse
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers.utils.import_utils import is_flash_attn_2_available

from lmms_eval_vreason.bench.command_runs import Measurement, Row, Setup, execute
from lmms_eval_vreason.bench.end_to_end_tables import OFF, STOCK, show, summary
from lmms_eval_vreason.bench.fixture import Fixture
from lmms_eval_vreason.bench.machine import device_of, facts, write
from lmms_eval_vreason.bench.sizes import PUBLISHED, SHAPES, Shape

# The prompt, the budget and the positions of the stock class.
_AS_STOCK = "thinking=off,positions=transformers"
_OURS = {
    OFF: f"{_AS_STOCK},policy=off",
    "ours, V-Reason": f"{_AS_STOCK},policy=switch,update_every=2,refresh=on",
    "ours, Lite": f"{_AS_STOCK},policy=switch,update_every=2,refresh=on,prune_ratio=0.5",
}
_STOCK_DTYPE = "bfloat16"  # what the stock class loads, whatever the device
_VISION_WEIGHTS = 680_000_000


def run(args: argparse.Namespace) -> int:
    """Runs the benchmark as the command line says. Raises ValueError for what cannot be run."""
    device = device_of(args.device)
    args.attention = _attention(args.attention, device)
    shape, rows = SHAPES[args.shape].cut(args.layers), _chosen_rows(args, device)
    torch.set_num_threads(args.threads)
    with _terminable(), tempfile.TemporaryDirectory(prefix="vreason-bench-") as name:
        _check_room(shape, args.shape, device, Path(name))
        fixture = Fixture(Path(name), args.videos, args.questions, args.video_tokens)
        fixture.write(shape.with_published_vision() if args.shape in PUBLISHED else shape, device)
        setup = Setup(fixture, device, args.attention, args.tokens, args.threads)
        report = facts(args, shape, device) | {"video_tokens": fixture.video_tokens, "samples": fixture.samples}
        for measured in rounds(setup, rows, args.rounds):
            # After each round, so that stopping a run does not lose what it has measured.
            report["rows"] = summary(measured, args.tokens)
            write(report, args.output)
    show(report)
    print(f"written: {args.output}")
    return 0


@contextmanager
def _terminable() -> Iterator[None]:
    """Within it SIGTERM unwinds the stack, as Ctrl-C does: the run in progress ends too, and no checkpoint is left."""
    previous = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def all_rows(batch_sizes: list[int], dtype: str | None, device: str) -> list[Row]:
    """Every row, with both classes in ``dtype`` or, for None, each in the one that it loads by itself."""
    own = dtype or ("float32" if device == "cpu" else _STOCK_DTYPE)
    rows = [Row(STOCK, "qwen2_5_vl", f"device_map={device}", 1, dtype or _STOCK_DTYPE)]
    for batch in batch_sizes:
        for name, arguments in _OURS.items():
            rows.append(Row(name, "qwen2_5_vl_vreason", f"{arguments},dtype={own}", batch, own))
    return rows


def _chosen_rows(args: argparse.Namespace, device: str) -> list[Row]:
    rows, delay = all_rows(args.batch_sizes, args.dtype, device), args.reading_delay
    if args.only is not None:
        rows = [row for row in rows if row.name == STOCK or args.only in row.label]
    if delay is None:
        return rows
    if delay <= 0:
        raise ValueError(f"--reading-delay {delay:g} must be a number of seconds above 0")
    if args.only is None:
        rows = [row for row in rows if row.name in (STOCK, OFF)]
    return [*rows, *(replace(row, delay=delay) for row in rows)]


def _attention(name: str | None, device: str) -> str:
    flash = device.startswith("cuda") and is_flash_attn_2_available()
    if name == "flash_attention_2" and not flash:
        raise ValueError(f"--attention {name}: there is no flash attention for {device} here; use --attention sdpa")
    return name or ("flash_attention_2" if flash else "sdpa")


def _check_room(shape: Shape, name: str, device: str, folder: Path) -> None:
    """Refuses, before anything is made, a checkpoint that does not fit on the disk or the device."""
    if name in PUBLISHED and device == "cpu":
        raise ValueError(f"--shape {name} takes days on a CPU: use --device cuda, or --shape narrow or medium")
    # In bfloat16, with input embeddings and vision tower.
    weights = shape.weights() + (0 if shape.tie_word_embeddings else shape.head_weights())
    size = 2 * (weights + (_VISION_WEIGHTS if name in PUBLISHED else 0))
    room = {str(folder.parent): shutil.disk_usage(folder).free}
    if device.startswith("cuda"):
        room[device] = torch.cuda.get_device_properties(device).total_memory
    for where, free in room.items():
        if size > free:
            raise ValueError(
                f"--shape {name}: its checkpoint has {size / 1e9:.0f} GB and {where} {free / 1e9:.0f} GB: "
                "set TMPDIR to a folder with room, or give --layers"
            )


def rounds(setup: Setup, rows: list[Row], count: int) -> Iterator[dict[Row, list[Measurement]]]:
    """Runs every row once a round, in a new random order each time; yields all measurements after each round.

    Before several rounds one short run warms the disk's cache, so that the first round is like the others.
    """
    shuffle = random.Random(0)
    measured: dict[Row, list[Measurement]] = {row: [] for row in rows}
    # The rows' runs differ in length, so the estimate of what is left goes by the mean of all, not of the last few.
    bar: tqdm[Any] = tqdm(total=count * len(rows), desc="starting", unit="run", file=sys.stderr, smoothing=0)
    with bar:
        if count > 1:
            execute(rows[-1], replace(setup, tokens=1))
        for number in range(count):
            for row in shuffle.sample(rows, len(rows)):
                bar.set_description(f"round {number + 1} of {count}, {row.label}")
                made = execute(row, setup)
                measured[row].append(made)
                rate = 60 * len(made.outputs) / made.seconds["phase"]
                bar.write(f"{row.label}: {rate:.1f} samples/min, {made.seconds['cpu']:.1f} s CPU", file=sys.stderr)
                bar.update()
            yield measured
