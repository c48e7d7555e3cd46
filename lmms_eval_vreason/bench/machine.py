"""What both benchmarks share: the device, the facts about the machine, and how a table is printed."""

import argparse
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch


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


def machine(device: str) -> dict[str, str]:
    """The machine and the versions that the figures hold for."""
    name, cpuinfo = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), name)
    return {
        "cpu": name,
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "transformers", "lmms_eval")},
    }


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The command line's options, as they go into the JSON file."""
    return {name: value for name, value in vars(args).items() if name != "run"}


def machine_line(machine: Mapping[str, str], threads: int) -> str:
    """These facts as one line of text."""
    name = machine["cpu"] if machine["device"] == "cpu" else machine["device"]
    return (
        f"{name}, {threads} thread(s); torch {machine['torch']}, transformers {machine['transformers']}, "
        f"lmms-eval {machine['lmms_eval']}, Python {machine['python']}"
    )


def print_table(columns: Mapping[str, Sequence[str]]) -> None:
    """Prints a Markdown table from its columns of words; the first column is aligned left, the others right."""
    align = ["left"] + ["right"] * (len(columns) - 1)
    print(pd.DataFrame(columns).to_markdown(index=False, disable_numparse=True, colalign=align))
