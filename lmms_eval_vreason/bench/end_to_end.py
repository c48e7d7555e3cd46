"""``vreason bench --end-to-end``: the stock class and ours on one task through lmms-eval's own command, in turns."""

import argparse
import json
import math
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers.utils.import_utils import is_flash_attn_2_available

from lmms_eval_vreason.bench.command_runs import Measurement, Row, Setup, execute
from lmms_eval_vreason.bench.end_to_end_tables import OFF, STOCK, delays, show, summary
from lmms_eval_vreason.bench.fixture import Fixture
from lmms_eval_vreason.bench.machine import device_of, machine, settings_of
from lmms_eval_vreason.bench.sizes import SHAPES, Shape

_OURS = {
    OFF: "thinking=off,policy=off",
    "ours, V-Reason": "thinking=off,policy=switch,update_every=2,refresh=on",
    "ours, Lite": "thinking=off,policy=switch,update_every=2,refresh=on,prune_ratio=0.5",
}
_STOCK_DTYPE = "bfloat16"  # what the stock class loads, whatever the device
_PUBLISHED = ("3b", "7b", "32b", "72b")
_VISION_WEIGHTS = 680_000_000


def run(args: argparse.Namespace) -> int:
    """Runs the benchmark as the command line says. Raises ValueError for what cannot be run."""
    device = device_of(args.device)
    shape, attention = SHAPES[args.shape].cut(args.layers), _attention(args.attention, device)
    delay = None if args.reading_delay is None else Delay.parse(args.reading_delay)
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    rows = [row for row in all_rows(args.batch_sizes, args.dtype, device) if _wanted(row, args)]
    with _terminable(), tempfile.TemporaryDirectory(prefix="vreason-bench-") as name:
        folder = Path(name)
        _check_room(shape, args.shape, device, folder)
        fixture = Fixture(folder, args.videos, args.questions, args.video_tokens)
        fixture.write(shape.with_published_vision() if args.shape in _PUBLISHED else shape, device)
        setup = Setup(fixture, device, attention, args.tokens, args.threads)
        rounds = Rounds(setup, rows, args.rounds, delay)
        report = {
            "shape": {"name": args.shape, **asdict(shape)},
            "settings": {**settings_of(args), "device": device, "attention": attention},
            "video_tokens": fixture.video_tokens,
            "samples": fixture.samples,
            "machine": machine(device),
        }
        for _ in rounds.run():
            # After each round, so that stopping a run does not lose what it has measured.
            report["rows"] = summary(rounds.measured, args.tokens)
            report["delays"] = delays(rounds.measured, rounds.delayed)
            output.write_text(json.dumps(report, indent=1) + "\n")
    show(report)
    print(f"written: {output}")
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


def _wanted(row: Row, args: argparse.Namespace) -> bool:
    if args.only is not None:
        return row.name == STOCK or args.only in row.label
    return args.reading_delay is None or row.name in (STOCK, OFF)


def _attention(name: str | None, device: str) -> str:
    flash = device.startswith("cuda") and is_flash_attn_2_available()
    name = name or ("flash_attention_2" if flash else "sdpa")
    if name.startswith("flash") and not flash:
        raise ValueError(f"--attention {name}: there is no flash attention for {device} here; use --attention sdpa")
    if name not in ("sdpa", "eager", "flash_attention_2"):
        raise ValueError(f"--attention {name}: the stock class knows sdpa, eager and flash_attention_2")
    return name


def _check_room(shape: Shape, name: str, device: str, folder: Path) -> None:
    """Refuses, before anything is made, a checkpoint that does not fit on the disk or the device."""
    if name in _PUBLISHED and device == "cpu":
        raise ValueError(f"--shape {name} takes days on a CPU: use --device cuda, or --shape narrow or medium")
    # In bfloat16, with input embeddings and vision tower.
    weights = shape.weights() + (0 if shape.tie_word_embeddings else shape.head_weights())
    size = 2 * (weights + (_VISION_WEIGHTS if name in _PUBLISHED else 0))
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ValueError(
            f"--shape {name}: its checkpoint has {size / 1e9:.0f} GB and {folder.parent} {free / 1e9:.0f} GB "
            "free: set TMPDIR to a folder with room, or give --layers"
        )
    if device.startswith("cuda") and size > (memory := torch.cuda.get_device_properties(device).total_memory):
        raise ValueError(
            f"--shape {name} has {size / 1e9:.0f} GB of weights and {device} {memory / 1e9:.0f} GB: give --layers"
        )


@dataclass(frozen=True)
class Delay:
    """A delay before each reading of a video: in seconds, or as a share of a run's generation time, spread over all."""

    value: float
    is_share: bool

    @classmethod
    def parse(cls, text: str) -> "Delay":
        """``0.5`` is seconds, ``50%`` a share. Raises ValueError for anything else."""
        try:
            value = float(text.removesuffix("%"))
        except ValueError:
            value = -1.0
        if not 0 < value < math.inf:
            raise ValueError(f"--reading-delay {text} is neither seconds (0.5) nor a share of the time (50%)")
        return cls(value / 100, True) if text.endswith("%") else cls(value, False)

    def seconds(self, plain: Measurement) -> float:
        """Of a run, given the same run without delay."""
        return self.value * plain.seconds["phase"] / plain.readings if self.is_share else self.value


@dataclass
class Rounds:
    """Every row once a round, in a new random order each time.

    Before several rounds one short run warms the disk's cache, so that the first round is like the others.

    Attributes:
        measured: Row → its measurements, one a round.
        delayed: The same for the runs whose reading of videos was slowed; each follows directly on the row's own run.
    """

    setup: Setup
    rows: list[Row]
    count: int
    delay: Delay | None

    def __post_init__(self) -> None:
        self.measured: dict[Row, list[Measurement]] = {row: [] for row in self.rows}
        self.delayed: dict[Row, list[tuple[float, Measurement]]] = {row: [] for row in self.rows}
        self._runs = 0

    def run(self) -> Iterator[int]:
        """Yields each round's number when it is over."""
        shuffle, order = random.Random(0), list(self.rows)
        runs = self.count * len(order) * (1 if self.delay is None else 2)
        # The rows' runs differ in length, so the estimate of what is left goes by the mean of all, not of the last few.
        with tqdm(total=runs, desc="starting", unit="run", file=sys.stderr, smoothing=0) as bar:
            if self.count > 1:
                self._execute(order[-1], replace(self.setup, tokens=1), 0.0)
            for number in range(self.count):
                shuffle.shuffle(order)
                for row in order:
                    bar.set_description(f"round {number + 1} of {self.count}, {row.label}")
                    self._measure(row, bar)
                yield number

    def _measure(self, row: Row, bar: "tqdm[Any]") -> None:
        plain = self._execute(row, self.setup, 0.0)
        bar.update()
        self.measured[row].append(plain)
        seconds = plain.seconds
        rate = 60 * len(plain.outputs) / seconds["phase"]
        bar.write(f"{row.label}: {rate:.1f} samples/min, {seconds['cpu']:.1f} s CPU", file=sys.stderr)
        if self.delay is not None:
            delay = self.delay.seconds(plain)
            self.delayed[row].append((delay, self._execute(row, self.setup, delay)))
            bar.update()

    def _execute(self, row: Row, setup: Setup, delay: float) -> Measurement:
        self._runs += 1
        return execute(row, setup, setup.fixture.folder / "runs" / str(self._runs), delay=delay)
