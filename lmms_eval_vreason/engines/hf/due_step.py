"""One due step, eager and compiled alike: a token's forward, the move of ΔV and of the cache, the refreshed logits."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import CompileConfig

from lmms_eval_vreason.engines.hf.head import Head
from lmms_eval_vreason.engines.hf.seam import Reached, Seam, by_kv_head, linearised
from lmms_eval_vreason.engines.hf.upstream import mark_dynamic
from lmms_eval_vreason.method.config import VReason
from lmms_eval_vreason.method.entropy import entropy_of, log_probabilities
from lmms_eval_vreason.method.policies import POLICIES, moving_average
from lmms_eval_vreason.method.shift import Shift


class Before(NamedTuple):
    """What a due step builds on, (batch,) each: the entropy's average and peak so far, what this token's entropy counts
    in the average, the random policy's α, which samples have not ended, and which have only had finite gradients."""

    ema: Tensor
    peak: Tensor
    weight: Tensor
    coin: Tensor
    unfinished: Tensor
    healthy: Tensor


class DueStep(NamedTuple):
    """What one due step gives; all (batch,), but ``logits`` (batch, vocabulary), to choose the token from.

    ``refreshed`` is the entropy after the update and ``changed`` whether another token is the likeliest then; nan and
    False without a refresh. ``grad_norm`` is that of the first step, ``shift`` ‖ΔV‖ / ‖V‖; None where no sample was
    active, and no update made.
    """

    logits: Tensor
    entropy: Tensor
    alpha: Tensor
    active: Tensor
    healthy: Tensor
    grad_norm: Tensor
    refreshed: Tensor
    changed: Tensor
    shift: Tensor | None


def due_step(seam: Seam, shift: Shift, method: VReason, inputs: dict[str, Any], before: Before) -> DueStep:
    """One token's forward, ``method.steps_per_update`` steps of ΔV on it, V_new into the cache, and fresh logits.

    Args:
        seam: Attached.
        inputs: As ``prepare_inputs_for_generation`` makes them for one token.
    """
    reached, logits, to_output = seam.forward(inputs)
    log_p = log_probabilities(logits)
    h = entropy_of(log_p)
    alpha = POLICIES[method.policy](*moving_average(before.ema, before.peak, h, before.weight), before.coin)
    active, healthy = before.unfinished & before.healthy & (h >= method.min_entropy), before.healthy
    refreshed = grad_norm = torch.full_like(h, torch.nan)
    changed = torch.zeros_like(active)
    head = Head.of(seam.tail, method, (logits, log_p), active)
    if head is None:
        return DueStep(logits, h, alpha, active, healthy, grad_norm, refreshed, changed, None)
    output, moved, now = Output(reached, shift), shift.window(reached.values), (logits, log_p, h)
    shift.begin()
    for number in range(method.steps_per_update):
        if number:
            hidden, to_output = linearised(seam.hidden, output.at(moved))
            now = head.distribution(hidden)
        gradient, sound = _finite(to_output(head.gradient(*now, torch.where(active, alpha, 0.0))))
        shift.give_up(~sound)
        active, healthy = active & sound.to(h.device), healthy & sound.to(h.device)
        gradient = shift.gradient(output.p, by_kv_head(gradient, output.p))
        if not number:
            grad_norm = torch.linalg.vector_norm(gradient.flatten(1), dim=1).to(h.device)
        shift.step(gradient, active.to(gradient.device))
        moved = shift.moved()
    if shift.kept:
        shift.window(reached.values).copy_(moved)
    if method.refresh:
        again, _, refreshed = head.distribution(seam.hidden(output.at(moved)))
        changed = again.argmax(dim=-1) != logits.argmax(dim=-1)
        logits = torch.where(active[:, None], again, logits)
    # Built at the end: a graph of torch 2.11 cannot return a named tuple made by _replace.
    return DueStep(logits, h, alpha, active, healthy, grad_norm, refreshed, changed, shift.relative().to(h.device))


def _finite(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient at A, with 0 for samples where it is not finite, and which ones it is finite for, (batch,)."""
    sound = gradient.flatten(1).isfinite().all(dim=1)
    return torch.where(sound[:, None, None, None], gradient, 0.0), sound


class Output:
    """The attention's output A of one query, as a function of the video values: it is linear in them.

    Attributes:
        p: (batch, kv_heads, query heads a KV head, window), its probabilities; 0 where no video is.
    """

    def __init__(self, reached: Reached, shift: Shift) -> None:
        p, exact = reached.attention()
        self.p = shift.window(p, dim=3) * shift.video
        self.dtype = reached.output.dtype
        # What the video does not contribute stays.
        self.rest = exact - self.p @ shift.window(reached.values).to(p.dtype)

    def at(self, moved: Tensor) -> Tensor:
        """(batch, 1, heads, head_dim), from V_new, (batch, kv_heads, window, head_dim)."""
        return (self.rest + self.p @ moved.to(self.p.dtype)).flatten(1, 2)[:, None].to(self.dtype)


class Steering:
    """The due steps of one generation.

    Attributes:
        shift: ΔV.
        healthy: (batch,) bool. A sample whose gradient was once not finite decodes on as the base model.
        steered: (batch,) bool, the samples that have video tokens.
    """

    def __init__(self, seam: Seam, shift: Shift, method: VReason, video_mask: Tensor) -> None:
        """Args: ``video_mask`` (batch, tokens) bool."""
        self.seam, self.shift, self.method = seam, shift, method
        self.healthy = self.steered = video_mask.any(dim=1)
        self._compiled: Callable[..., DueStep] | None = None

    def compile(self, settings: CompileConfig) -> None:
        """Compiles all but the first due step, which checks the tail."""
        self._compiled = compiled_due_step(tuple(settings.to_dict().items()))
        for tensor, dimension in self.shift.by_window():
            mark_dynamic(tensor, dimension)

    def step(self, inputs: dict[str, Any], averages: list[list[float]], unfinished: Tensor) -> DueStep:
        """One due step. ``averages``: ``ema``, ``peak``, ``weight`` and ``coin`` of :class:`Before`, each by sample."""
        ema, peak, weight, coin = torch.tensor(averages, device=unfinished.device)
        before = Before(ema, peak, weight, coin, unfinished, self.healthy)
        compiled = self._compiled if self.seam.checked else None
        with self.seam.attached():
            step = (compiled or due_step)(self.seam, self.shift, self.method, inputs, before)
        if compiled is not None:
            # Copies: a CUDA graph writes its results into the same memory again.
            step = DueStep(step.logits, *(result.clone() for result in step[1:] if result is not None))
        self.healthy = step.healthy
        return step


@cache
def compiled_due_step(settings: tuple[tuple[str, Any], ...]) -> Callable[..., DueStep]:
    """:func:`due_step`, compiled once for each ``settings``."""
    return torch.compile(due_step, **dict(settings))
