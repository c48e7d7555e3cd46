"""The method as a frozen dataclass: every choice that the paper makes or leaves open, with its default and range."""

from dataclasses import dataclass, fields
from typing import Any

CHOICES: dict[str, tuple[str, ...]] = {
    "policy": ("switch", "minimize", "maximize", "random", "off"),
    "objective": ("kl_p_u", "kl_u_p"),
    "optimizer": ("adam", "sgd"),
    "norm": ("head", "token", "none"),
    "rounding": ("stochastic", "nearest"),
    "prune_score": ("value_norm", "key_norm", "mean_value_norm", "random"),
    "compile": ("auto", "on", "off"),
}

# name: (lowest, highest, whether the lowest itself is allowed, whether the highest itself is allowed)
RANGES: dict[str, tuple[float, float, bool, bool]] = {
    "learning_rate": (0.0, float("inf"), True, False),
    "update_every": (1, float("inf"), True, False),
    "steps_per_update": (1, float("inf"), True, False),
    "ema_decay": (0.0, 1.0, True, False),
    "min_entropy": (0.0, float("inf"), True, False),
    "head_topk": (0, float("inf"), True, False),
    "prune_ratio": (0.0, 1.0, True, False),
    "seed": (0, 2**63, True, False),
}


@dataclass(frozen=True)
class VReason:
    """V-Reason ("Video Reasoning without Training", arXiv 2510.17045) and its hyperparameters.

    "Paper" marks what is published; "ours" what the paper leaves open and this package chose.

    Attributes:
        policy: How α is set at each step. ``switch`` (paper): −1 (lower the entropy) while the entropy's EMA is under
            its running peak, else +1 (raise it). ``minimize``, ``maximize`` (paper's ablations): −1 or +1 throughout.
            ``random`` (control, ours): a fair coin from ``seed``. ``off``: the base model.
        learning_rate: Step size of ΔV in the optimiser, in the units of the value cache. Ours. 0 is the base model.
        update_every: One update every this many generated tokens (paper: k; 2 works well).
        refresh: Recompute the current token's logits with the updated cache, so that an update already acts on the
            token that caused it. Ours.
        ema_decay: β of the entropy's exponential moving average, which starts at 0. Ours: 0.98.
        objective: ``kl_p_u`` is KL(p‖U), ``kl_u_p`` is KL(U‖p); the loss is α times it. Ours: ``kl_p_u``.
        optimizer: ``adam`` (β 0.9, 0.999) or ``sgd``, per video. Ours: adam.
        steps_per_update: Optimiser steps at each update. Ours: 1.
        norm: Over what the update preserves the norm of V: ``head`` (per token and KV head, over head_dim; ours),
            ``token`` (per token, over all KV heads) or ``none`` (V + ΔV as it is).
        rounding: How V_new is rounded to a bfloat16 cache. ``stochastic`` keeps, on average, steps that are smaller
            than the cache's spacing (0.03 at a value of 4, three times the learning rate); ``nearest`` loses them
            until they add up in ΔV, which is float32 either way. Other dtypes are rounded to nearest. Ours.
        min_entropy: Nats; below it an update is skipped, because its gradient is dead and Adam would move ΔV on old
            momentum alone. Ours.
        head_topk: Take the gradient through the head from this many likeliest tokens only; 0 is exact. Ours.
        prune_ratio: Lite: share of the video tokens dropped from all layers' caches after prefill. Paper: 0.5 for Lite.
        prune_score: Lite: the tokens with the lowest score go. ``value_norm`` and ``key_norm`` are L2 norms in the last
            layer, ``mean_value_norm`` the mean over layers, ``random`` a control. Ours (the paper says "norm").
        compile: Compiled decoding over a static cache: ``on``, ``off``, or ``auto``, where transformers compiles by
            itself. Ours.
        seed: Seed of the ``random`` policy, the ``random`` prune score and stochastic rounding.

    Raises:
        ValueError: A value of the wrong type, outside its range, or a combination that cannot work.
    """

    policy: str = "switch"
    learning_rate: float = 0.01
    update_every: int = 2
    refresh: bool = True
    ema_decay: float = 0.98
    objective: str = "kl_p_u"
    optimizer: str = "adam"
    steps_per_update: int = 1
    norm: str = "head"
    rounding: str = "stochastic"
    min_entropy: float = 1e-4
    head_topk: int = 0
    prune_ratio: float = 0.0
    prune_score: str = "value_norm"
    compile: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            _check(field.name, field.type, getattr(self, field.name))
        if self.head_topk and self.objective == "kl_u_p":
            raise ValueError(
                "head_topk needs objective='kl_p_u': the gradient of KL(U‖p) is spread over the whole vocabulary. "
                "Set head_topk=0 or objective='kl_p_u'"
            )

    @property
    def steers(self) -> bool:
        """Whether any update can happen: neither ``policy='off'`` nor ``learning_rate=0``."""
        return self.policy != "off" and self.learning_rate > 0

    def is_due(self, token: int) -> bool:
        """Whether the ``token``-th generated token (from 0; token 0 comes from the prefill) has an update."""
        return token > 0 and (token + 1) % self.update_every == 0

    def generate(self, model: Any, **inputs: Any) -> Any:
        """:func:`lmms_eval_vreason.generate` with this method: ``model.generate(**inputs)`` under V-Reason."""
        from lmms_eval_vreason import generate

        return generate(model, self, **inputs)


def _check(name: str, kind: Any, value: Any) -> None:
    if name in CHOICES:
        if value not in CHOICES[name]:
            raise ValueError(f"{name}={value!r} is not one of {', '.join(CHOICES[name])}")
        return
    if kind is bool or isinstance(value, bool):
        if not (kind is bool and isinstance(value, bool)):
            raise ValueError(
                f"{name}={value!r} must be {'True or False' if kind is bool else f'a number ({kind.__name__})'}"
            )
        return
    allowed = (int,) if kind is int else (int, float)
    if not isinstance(value, allowed):
        raise ValueError(f"{name}={value!r} must be a number ({kind.__name__})")
    low, high, with_low, with_high = RANGES[name]
    if not ((low < value or (with_low and value == low)) and (value < high or (with_high and value == high))):
        interval = f"{'[' if with_low else '('}{low:g}, {high:g}{']' if with_high else ')'}"
        raise ValueError(f"{name}={value!r} is outside {interval}")
