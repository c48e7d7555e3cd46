"""What both benchmarks share: the device, the facts of a report, and how it prints a table."""

import argparse
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lmms_eval_vreason.adapter.environment import environment
from lmms_eval_vreason.shapes.architecture import Sizes


def device_of(name: str) -> str:
    """A device's name; ``auto`` is CUDA if there is one. Raises ValueError for a device that does not exist."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device {name}: torch has no such device; use auto, cpu or cuda") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices; use --device cpu")
    return name


def facts(args: argparse.Namespace, shape: Sizes, device: str) -> dict[str, Any]:
    """What a report says of its setting: the shape, the command line's options, the machine and the versions."""
    settings = {name: value for name, value in vars(args).items() if name != "run"}
    return {
        "shape": {"name": args.shape, **asdict(shape)},
        "settings": {**settings, "device": device},
        "machine": {**environment(), "cpu": _cpu()},
    }


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    return next(names, platform.processor() or platform.machine())


def machine_line(report: Mapping[str, Any]) -> str:
    """The machine of a report as one line of text."""
    machine, settings = report["machine"], report["settings"]
    return (
        f"{machine['cpu' if settings['device'] == 'cpu' else 'gpu']}, {settings['threads']} thread(s); "
        f"torch {machine['torch']}, transformers {machine['transformers']}, lmms-eval {machine['lmms-eval']}, "
        f"Python {machine['python']}"
    )


def print_table(rows: Sequence[Mapping[str, Any]], cells: Mapping[str, str]) -> None:
    """Prints a Markdown table with one line for each row.

    Args:
        rows: The figures.
        cells: Heading → ``str.format`` template over a row. The first column is aligned left, the others right.
    """
    columns = {head: [cell.format(**row) for row in rows] for head, cell in cells.items()}
    align = ["left"] + ["right"] * (len(columns) - 1)
    print(pd.DataFrame(columns).to_markdown(index=False, disable_numparse=True, colalign=align))
