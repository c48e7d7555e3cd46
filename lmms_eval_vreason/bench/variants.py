"""What the benchmark compares: plain ``generate`` and the method with different settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmms_eval_vreason.engines.hf.generation import Generation, generate
from lmms_eval_vreason.method import VReason
from lmms_eval_vreason.method.config import PRESETS

# Every due token gets its update, and so its full cost, unless a row says otherwise: random weights give some tokens
# next to no entropy.
_ALL: dict[str, Any] = {"min_entropy": 0.0, "compile": "off"}
_SETTINGS: dict[str, dict[str, Any]] = {
    "policy off": {"policy": "off"},
    "default": {},
    **{f"update_every {n}": {"update_every": n} for n in (1, 4, 8)},
    "exact head": {"head_topk": 0},
    "exact head, kept, no refresh": {"head_topk": 0, "keep_shift": True, "refresh": False},
    "Lite": {"prune_ratio": 0.5},
    "strong, gate passes 57%": PRESETS["strong"],
    **{f"{n} steps": {"steps_per_update": n} for n in (4, 10)},
}
_PASSING = {"strong, gate passes 57%": 0.57}


@dataclass(frozen=True)
class Variant:
    """One row of the table. Without a ``method`` it is plain ``generate``.

    Attributes:
        passing: The share of plain ``generate``'s tokens that the gate ``min_entropy``, set before the run, lets pass;
            None where the gate stays as it is.
        compiled: Whether its steps are compiled, over a static cache, which stays in its place.
    """

    name: str
    method: VReason | None = None
    passing: float | None = None
    compiled: bool = False

    @property
    def baseline(self) -> str:
        """The name of the variant that this one's ratio is to."""
        return "plain generate, compiled" if self.compiled else "plain generate"

    def generate(self, model: Any, **inputs: Any) -> Generation:
        """Token ids, (batch, prompt + new tokens), and the method's traces."""
        if self.method is None:
            return Generation(model.generate(**inputs), [])
        return generate(model, self.method, **inputs)


def variants(compiled: bool, only: Sequence[str] = ("",)) -> list[Variant]:
    """Plain ``generate``, then the rows whose name contains one of ``only``; ``compiled`` adds those that are."""
    rows = [Variant(name, VReason(**{**settings, **_ALL}), _PASSING.get(name)) for name, settings in _SETTINGS.items()]
    plain = [Variant("plain generate")]
    if compiled:
        plain.append(Variant("plain generate, compiled", compiled=True))
        for name, settings in (("default", {}), ("update_every 4", {"update_every": 4})):
            method = VReason(**{**settings, **_ALL, "compile": "on"})
            rows.append(Variant(f"{name}, compiled", method, compiled=True))
    return plain + [row for row in rows if any(text in row.name for text in only)]
