"""V-Reason for lmms-eval: video reasoning without training, steered by entropy while a Qwen2.5-VL decodes."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lmms_eval_vreason.engines.hf import Generation, generate
    from lmms_eval_vreason.method import Trace, VReason

# Loaded on first use: lmms-eval imports every plugin's package at start, and torch takes seconds.
_LAZY = {
    **dict.fromkeys(("VReason", "Trace"), "lmms_eval_vreason.method"),
    **dict.fromkeys(("Generation", "generate"), "lmms_eval_vreason.engines.hf"),
}

__all__ = ["Generation", "Trace", "VReason", "__version__", "generate"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
