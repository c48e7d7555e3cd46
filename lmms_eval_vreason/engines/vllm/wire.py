"""Traces between processes: plain values that vLLM's own serialisation carries."""

from dataclasses import fields
from typing import Any

import numpy as np

from lmms_eval_vreason.method.trace import COLUMNS, Trace


def packed(trace: Trace) -> dict[str, Any]:
    """``trace`` as numbers, text and lists."""
    return {
        field.name: getattr(trace, field.name).tolist() if field.name in COLUMNS else getattr(trace, field.name)
        for field in fields(Trace)
    }


def unpacked(values: dict[str, Any]) -> Trace:
    """The trace that :func:`packed` took apart; float32 goes through Python's floats unchanged."""
    columns: dict[str, Any] = {name: np.array(values[name], "float32") for name in COLUMNS}
    return Trace(**{**values, **columns})
