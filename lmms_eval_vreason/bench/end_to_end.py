"""``vreason bench --end-to-end``: the stock class and ours on one task through lmms-eval's own command, in turns."""

import argparse
import json
import math
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers.utils import is_flash_attn_2_available

from lmms_eval_vreason.bench.command_runs import Entry, Measurement, Settings, execute
from lmms_eval_vreason.bench.end_to_end_tables import delays, show, summary
from lmms_eval_vreason.bench.fixture import build
from lmms_eval_vreason.bench.run import device_of, machine
from lmms_eval_vreason.bench.sizes import SHAPES, Shape

STOCK, OFF = "stock", "ours, policy=off"
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
    rows = [row for row in entries(args.batch_sizes, args.dtype, device) if _wanted(row, args)]
    with _terminable(), tempfile.TemporaryDirectory(prefix="vreason-bench-") as folder:
        _check_room(shape, args, device, Path(folder))
        fixture = build(
            Path(folder),
            shape=shape,
            vision=args.shape in _PUBLISHED,
            videos=args.videos,
            questions=args.questions,
            video_tokens=args.video_tokens,
            device=device,
        )
        settings = Settings(fixture, device, attention, args.tokens, args.threads)
        rounds = _Rounds(settings, rows, args.rounds, delay)
        for _ in rounds.run():
            # After each round, so that what is measured outlives a run that is stopped.
            report = {"shape": {"name": args.shape, **asdict(shape)}, **_report(args, settings, rounds)}
            output.write_text(json.dumps(report, indent=1) + "\n")
    show(report)
    print(f"written: {output}")
    return 0


def _report(args: argparse.Namespace, settings: Settings, rounds: "_Rounds") -> dict[str, Any]:
    given = {name: value for name, value in vars(args).items() if name != "run"}
    return {
        "settings": {**given, "device": settings.device, "attention": settings.attention},
        "video_tokens": settings.fixture.video_tokens,
        "samples": settings.fixture.samples,
        "machine": {**machine(settings.device), "lmms_eval": version("lmms_eval")},
        "rows": summary(rounds.rows, rounds.measured, STOCK, OFF, args.tokens),
        "delays": delays(rounds.rows, rounds.measured, rounds.delayed),
    }


@contextmanager
def _terminable() -> Iterator[None]:
    """Within it SIGTERM unwinds the stack, as Ctrl-C does: no run goes on alone, and no checkpoint stays behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def entries(batch_sizes: list[int], dtype: str | None, device: str) -> list[Entry]:
    """All rows: both classes in ``dtype``, or, for None, each in the one that it loads by itself."""
    own = dtype or ("float32" if device == "cpu" else _STOCK_DTYPE)
    rows = [Entry(STOCK, "qwen2_5_vl", f"device_map={device}", 1, dtype or _STOCK_DTYPE)]
    for batch in batch_sizes:
        for name, arguments in _OURS.items():
            rows.append(Entry(name, "qwen2_5_vl_vreason", f"{arguments},dtype={own}", batch, own))
    return rows


def _wanted(row: Entry, args: argparse.Namespace) -> bool:
    if args.only is not None:
        return row.name == STOCK or args.only in row.label
    return args.reading_delay is None or row.name in (STOCK, OFF)


def _attention(name: str | None, device: str) -> str:
    if name is None:
        return "flash_attention_2" if device.startswith("cuda") and is_flash_attn_2_available() else "sdpa"
    if name.startswith("flash") and not (device.startswith("cuda") and is_flash_attn_2_available()):
        raise ValueError(f"--attention {name}: there is no flash attention for {device} here; use --attention sdpa")
    if name not in ("sdpa", "eager", "flash_attention_2"):
        raise ValueError(f"--attention {name}: the stock class knows sdpa, eager and flash_attention_2")
    return name


def _check_room(shape: Shape, args: argparse.Namespace, device: str, folder: Path) -> None:
    """Refuses, before anything is made, a checkpoint that does not fit on the disk or the device."""
    # In bfloat16, with input embeddings and vision tower.
    weights = shape.weights() + (0 if shape.tied else shape.head_weights())
    size = 2 * (weights + (_VISION_WEIGHTS if args.shape in _PUBLISHED else 0))
    if args.shape in _PUBLISHED and device == "cpu":
        raise ValueError(f"--shape {args.shape} takes days on a CPU: use --device cuda, or --shape narrow or medium")
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ValueError(
            f"--shape {args.shape}: its checkpoint has {size / 1e9:.0f} GB and {folder.parent} {free / 1e9:.0f} GB "
            "free: set TMPDIR to a folder with room, or give --layers"
        )
    if device.startswith("cuda") and size > (memory := torch.cuda.get_device_properties(device).total_memory):
        raise ValueError(
            f"--shape {args.shape} has {size / 1e9:.0f} GB of weights and {device} {memory / 1e9:.0f} GB: give --layers"
        )


@dataclass(frozen=True)
class Delay:
    """Seconds before each reading of a video: ``fixed``, or ``share`` of what a run generates in, over its readings."""

    fixed: float | None = None
    share: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Delay":
        """``0.5`` is seconds, ``50%`` a share. Raises ValueError for anything else."""
        try:
            value = float(text.removesuffix("%"))
        except ValueError:
            value = -1.0
        if not 0 < value < math.inf:
            raise ValueError(f"--reading-delay {text} is neither seconds (0.5) nor a share of the time (50%)")
        return cls(share=value / 100) if text.endswith("%") else cls(fixed=value)

    def seconds(self, plain: Measurement) -> float:
        """For a run, given the same run without delay."""
        return self.fixed if self.fixed is not None else self.share * plain.phase / plain.readings


class _Rounds:
    """Every row once a round, in a new random order each time.

    Before several rounds one short run warms the disk's cache, so that the first is like the others.

    Attributes:
        measured: Row → its measurements, one a round.
        delayed: The same of the runs in which the reading of videos was slowed; each follows on the row's own.
    """

    def __init__(self, settings: Settings, rows: list[Entry], rounds: int, delay: Delay | None) -> None:
        self.settings, self.rows, self.rounds, self.delay = settings, rows, rounds, delay
        self.measured: dict[Entry, list[Measurement]] = {row: [] for row in rows}
        self.delayed: dict[Entry, list[tuple[float, Measurement]]] = {row: [] for row in rows}
        self._took: dict[tuple[Entry, bool], float] = {}
        self._number = 0

    def run(self) -> Iterator[int]:
        """Yields each round's number, when it is over."""
        shuffle, order = random.Random(0), list(self.rows)
        steps = [(row, False) for row in order] + [(row, True) for row in order if self.delay is not None]
        self._left = steps * self.rounds
        with tqdm(total=len(self._left), desc="starting", unit="run", file=sys.stderr) as self._bar:
            if self.rounds > 1:
                execute(self.rows[-1], replace(self.settings, tokens=1), self._folder(), tick=self._tick)
            for number in range(self.rounds):
                shuffle.shuffle(order)
                for row in order:
                    self._measure(row, number)
                yield number

    def _measure(self, row: Entry, number: int) -> None:
        plain = self._timed(row, number, 0.0)
        self.measured[row].append(plain)
        if self.delay is not None:
            delay = self.delay.seconds(plain)
            self.delayed[row].append((delay, self._timed(row, number, delay)))

    def _timed(self, row: Entry, number: int, delay: float) -> Measurement:
        slow = ", slow reading" if delay else ""
        self._bar.set_description(f"round {number + 1} of {self.rounds}, {row.label}{slow}")
        self._say_time_left()
        started = time.monotonic()
        measurement = execute(row, self.settings, self._folder(), delay=delay, tick=self._tick)
        self._took[row, bool(delay)] = time.monotonic() - started
        self._left.remove((row, bool(delay)))
        self._bar.update()
        rate = 60 * len(measurement.outputs) / measurement.phase
        self._bar.write(f"{row.label}{slow}: {rate:.1f} samples/min, {measurement.cpu:.1f} s CPU", file=sys.stderr)
        return measurement

    def _tick(self) -> None:
        if sys.stderr.isatty():
            self._bar.refresh()

    def _folder(self) -> Path:
        self._number += 1
        return self.settings.fixture.folder / "runs" / str(self._number)

    def _say_time_left(self) -> None:
        """From what each row took last time; a row's first run is taken to be like the others' mean."""
        if not self._took:
            return
        mean = sum(self._took.values()) / len(self._took)
        seconds = sum(self._took.get(step, mean) for step in self._left)
        self._bar.set_postfix_str(f"about {tqdm.format_interval(seconds)} left")
