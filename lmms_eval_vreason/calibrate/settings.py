"""The settings that are compared: a small grid, or a user's YAML file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lmms_eval_vreason.adapter.options import METHOD_NAMES

GRID: dict[str, dict[str, Any]] = {
    **{name: {"preset": name, "policy": "switch"} for name in ("gentle", "default", "strong")},
    **{
        f"{name}, {policy}": {"preset": name, "policy": policy}
        for name in ("default", "strong")
        for policy in ("minimize", "maximize")
    },
    "default, random": {"preset": "default", "policy": "random"},
}


def read_settings(path: Path | None) -> dict[str, dict[str, Any]]:
    """Name → model arguments, from a file; without one the :data:`GRID`.

    Raises:
        ValueError: It is not such a mapping, or names an argument that is not one of the method's.
        OSError: It cannot be read.
    """
    if path is None:
        return GRID
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"--settings {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(given, dict) or not given or not all(isinstance(each, dict) for each in given.values()):
        raise ValueError(f"--settings {path}: write a line a setting, such as  mine: {{preset: strong, norm: token}}")
    for name, arguments in given.items():
        if unknown := [argument for argument in arguments if argument not in METHOD_NAMES]:
            raise ValueError(
                f"--settings {path}: {name} has {unknown[0]!r}, which is not one of {', '.join(METHOD_NAMES)}"
            )
    return {str(name): arguments for name, arguments in given.items()}


def as_model_args(arguments: Mapping[str, Any]) -> str:
    """Arguments as ``--model_args`` takes them."""
    return ",".join(f"{name}={value}" for name, value in arguments.items())
