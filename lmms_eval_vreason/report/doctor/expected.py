"""What a run's settings are compared with: its preset's, or lmms-eval's defaults."""

from collections.abc import Mapping
from typing import Any

_QWEN = {"max_num_frames": 32, "fps": None, "max_pixels": 1605632, "min_pixels": 256 * 28 * 28}
# lmms-eval 0.7.3's own classes whose defaults are known here; this package's classes have those of `qwen2_5_vl`.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
    "qwen2_vl": {"max_num_frames": 32, "max_pixels": 602112, "min_pixels": 3136},
}


def expected(preset: str) -> Mapping[str, Any]:
    """What a preset sets, by the model argument's or generation setting's name; empty for a name that sets none.

    The names ``gentle``, ``default`` and ``strong`` are strengths of the method, and set none.
    """
    return {}


def defaults(model: str, ours: bool) -> Mapping[str, Any]:
    """Frames and pixels that lmms-eval's class takes where no argument says otherwise; empty for an unknown class."""
    return _QWEN if ours else _DEFAULTS.get(model, {})
