"""The method as a frozen dataclass: every choice that the paper makes or leaves open, with its default and range."""

import math
from dataclasses import dataclass, fields
from typing import Any

CHOICES: dict[str, tuple[str, ...]] = {
    "policy": ("switch", "minimize", "maximize", "random", "off"),
    "objective": ("kl_p_u", "kl_u_p"),
    "optimizer": ("adam", "sgd", "nsgd"),
    "norm": ("head", "token", "cache", "none"),
    "prune_score": ("value_norm", "key_norm", "mean_value_norm", "random"),
    "compile": ("auto", "on", "off"),
}

# name: (the lowest value, the one that all values lie under)
RANGES: dict[str, tuple[float, float]] = {
    "learning_rate": (0, math.inf),
    "update_every": (1, math.inf),
    "steps_per_update": (1, math.inf),
    "beta1": (0, 1),
    "beta2": (0, 1),
    "ema_decay": (0, 1),
    "min_entropy": (0, math.inf),
    "head_topk": (0, math.inf),
    "head_tail": (0, 1),
    "prune_ratio": (0, 1),
    "seed": (0, 2**63),
}

# Named strengths, each a change of the defaults; ours, measured in docs/effect.md.
PRESETS: dict[str, dict[str, Any]] = {
    "gentle": {"learning_rate": 0.3},
    "default": {},
    "strong": {"update_every": 1},
}


@dataclass(frozen=True)
class VReason:
    """V-Reason ("Video Reasoning without Training", arXiv 2510.17045) and its hyperparameters.

    "Paper" marks what is published; "ours" what the paper leaves open and this package chose.

    Attributes:
        policy: How α is set at each step. ``switch`` (paper): −1 (lower the entropy) while the entropy's EMA is under
            its running peak, else +1 (raise it). ``minimize``, ``maximize`` (paper's ablations): −1 or +1 throughout.
            ``random`` (control, ours): a fair coin from ``seed``. ``off``: the base model.
        learning_rate: Step size of ΔV in the optimiser, in units of each token's and KV head's RMS over head_dim, so
            that one rate turns the values of every model alike. Ours. 0 is the base model.
        update_every: One update every this many generated tokens (paper: k; 2 works well).
        refresh: Recompute the current token's logits with the updated values, so that an update already acts on the
            token that caused it. Ours.
        keep_shift: On, ΔV stays from one update to the next, in the cache (paper). Off, it starts at 0 at each, acts on
            this token alone, and the cache stays as it was; that needs ``refresh``. Ours: off, which goes further at
            the same cost, and spares answers that a ΔV of many updates spoils.
        ema_decay: β of the entropy's exponential moving average, which starts at 0. Ours: 0.9.
        ema_correction: Divide the average by 1 - βᵗ, so that it does not have to climb from 0. Ours: off.
        objective: ``kl_p_u`` is KL(p‖U), ``kl_u_p`` is KL(U‖p); the loss is α times it. Ours: ``kl_p_u``.
        optimizer: Per video, ``nsgd`` (a step along the gradient whose RMS is the learning rate), ``adam`` or ``sgd``.
            Ours: nsgd.
        beta1, beta2: Adam's. Ours: 0 and 0.999; successive gradients are nearly orthogonal, so that momentum averages
            the current one away.
        steps_per_update: Optimiser steps at each update. Ours: 1.
        norm: Over what the update preserves the norm of V: ``head`` (per token and KV head, over head_dim; ours),
            ``token`` (per token, over all KV heads), ``cache`` (one norm for all of a sample's video, as the paper's
            figure can be read) or ``none`` (V + ΔV as it is).
        min_entropy: Nats; below it an update is skipped and costs next to nothing. What is certain has little to gain,
            and a step that does not know the gradient's size would turn the values for nothing. Ours.
        head_topk: At most this many of the likeliest tokens take part in an update, in its gradient and its refreshed
            logits; the others keep their logits. 0 is exact, and so is any update of ``kl_u_p``, whose gradient is
            spread over the whole vocabulary. Ours.
        head_tail: As few of the likeliest tokens as leave the others no more than this probability take part; where
            ``head_topk`` of them leave more, all do. Ours.
        prune_ratio: Lite: share of the video tokens dropped from all layers' caches after prefill. Paper: 0.5 for Lite.
        prune_score: Lite: the tokens with the lowest score go. ``value_norm`` and ``key_norm`` are L2 norms in the last
            layer, ``mean_value_norm`` the mean over layers, ``random`` a control. Ours (the paper says "norm").
        compile: Compiled decoding over a static cache: ``on``, ``off``, or ``auto``, where transformers compiles by
            itself. Ours.
        seed: Seed of the ``random`` policy and the ``random`` prune score.

    Raises:
        ValueError: A value of the wrong type, outside its range, or a combination that cannot work.
    """

    policy: str = "switch"
    learning_rate: float = 1.0
    update_every: int = 2
    refresh: bool = True
    keep_shift: bool = False
    ema_decay: float = 0.9
    ema_correction: bool = False
    objective: str = "kl_p_u"
    optimizer: str = "nsgd"
    beta1: float = 0.0
    beta2: float = 0.999
    steps_per_update: int = 1
    norm: str = "head"
    min_entropy: float = 0.5
    head_topk: int = 1024
    head_tail: float = 0.01
    prune_ratio: float = 0.0
    prune_score: str = "value_norm"
    compile: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            _check(field.name, field.type, getattr(self, field.name))
        if not (self.keep_shift or self.refresh):
            raise ValueError(
                "keep_shift=False needs refresh=True: a ΔV that is gone at the next token acts on this one or on none. "
                "Set keep_shift=True to go without the refresh"
            )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "VReason":
        """One of the :data:`PRESETS`, with ``changes``. Raises ValueError as the class does."""
        if name not in PRESETS:
            raise ValueError(f"preset={name!r} is not one of {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **changes})

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
    elif kind is bool:
        if not isinstance(value, bool):
            raise ValueError(f"{name}={value!r} must be True or False")
    elif isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
        raise ValueError(f"{name}={value!r} must be a number ({kind.__name__})")
    elif not RANGES[name][0] <= value < RANGES[name][1]:
        low, high = RANGES[name]
        raise ValueError(f"{name}={value!r} is outside [{low:g}, {high:g})")
