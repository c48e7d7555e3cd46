"""One due step, eager and compiled alike: a token's forward, the move of ΔV and of the cache, the refreshed logits."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import CompileConfig

from lmms_eval_vreason.engines.hf.seam import Seam, by_kv_head, linearised
from lmms_eval_vreason.engines.hf.upstream import mark_dynamic
from lmms_eval_vreason.method.config import VReason
from lmms_eval_vreason.method.entropy import OBJECTIVE_GRADIENTS, entropy, entropy_of, log_probabilities
from lmms_eval_vreason.method.policies import POLICIES, moving_average
from lmms_eval_vreason.method.shift import Shift


class Before(NamedTuple):
    """What a due step builds on, (batch,) each: the entropy's average and peak so far, the random policy's α, which
    samples have not ended, and which have only had finite gradients."""

    ema: Tensor
    peak: Tensor
    coin: Tensor
    unfinished: Tensor
    healthy: Tensor


class DueStep(NamedTuple):
    """What one due step gives; all (batch,), but ``logits`` (batch, vocabulary), to choose the token from.

    ``refreshed`` is the entropy after the update, nan without a refresh. ``grad_norm`` is that of the first step.
    """

    logits: Tensor
    entropy: Tensor
    alpha: Tensor
    active: Tensor
    healthy: Tensor
    grad_norm: Tensor
    refreshed: Tensor


def due_step(seam: Seam, shift: Shift, method: VReason, inputs: dict[str, Any], before: Before) -> DueStep:
    """One token's forward, ``method.steps_per_update`` steps of ΔV on it, V_new into the cache, and fresh logits.

    Args:
        seam: Attached.
        inputs: As ``prepare_inputs_for_generation`` makes them for one token.
    """
    reached, logits, to_output = seam.forward(inputs)
    output, log_p = reached.output, log_probabilities(logits)
    h = entropy_of(log_p)
    average = moving_average(before.ema, before.peak, h, method.ema_decay)
    alpha = POLICIES[method.policy](*average, before.coin)
    active = before.unfinished & before.healthy & (h >= method.min_entropy)
    healthy = before.healthy
    refreshed = grad_norm = torch.full_like(h, torch.nan)
    if not torch.compiler.is_compiling() and not bool(active.any()):
        return DueStep(logits, h, alpha, active, healthy, grad_norm, refreshed)
    p = shift.window(reached.p, dim=3) * shift.video
    # A is linear in the values: what the window's video tokens do not contribute stays.
    still, first = reached.exact - p @ shift.window(reached.values).to(p.dtype), logits
    for number in range(method.steps_per_update):
        if number:
            hidden, to_output = linearised(seam.hidden, output)
            logits = seam.tail.logits(hidden).to(h.device)
            log_p = log_probabilities(logits)
        gradient = to_output(_before_head(seam, method, (logits, log_p), torch.where(active, alpha, 0.0)))
        gradient = shift.gradient(p, by_kv_head(gradient, p).to(p.dtype))
        norm = torch.linalg.vector_norm(gradient.flatten(1), dim=1).to(h.device)
        grad_norm, sound = grad_norm if number else norm, norm < torch.inf
        active, healthy = active & sound, healthy & sound
        shift.step(gradient, active.to(p.device), sound.to(p.device))
        moved = shift.moved()
        if method.refresh or number + 1 < method.steps_per_update:
            output = (still + p @ moved.to(p.dtype)).flatten(1, 2)[:, None].to(output.dtype)
    shift.window(reached.values).copy_(moved)
    if method.refresh:
        again = seam.tail.logits(seam.hidden(output)).to(first.device)
        first, refreshed = torch.where(active[:, None], again, first), entropy(again)
    # Built at the end: a graph of torch 2.11 cannot return a named tuple made by _replace.
    return DueStep(first, h, alpha, active, healthy, grad_norm, refreshed)


def _before_head(seam: Seam, method: VReason, at: tuple[Tensor, Tensor], weights: Tensor) -> Tensor:
    """The gradient of Σ weights · objective in the final norm's output, ``at`` (logits, log p), in closed form."""
    logits, log_p = at
    h, top = entropy_of(log_p), None
    if method.head_topk:
        log_p, top = log_p.topk(min(method.head_topk, log_p.shape[-1]), dim=-1, sorted=False)
    gradient = OBJECTIVE_GRADIENTS[method.objective](log_p, h) * weights[:, None]
    return seam.tail.before_head(gradient, logits, top)


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
        """Compiles all but the first due step, which checks the tail. One with ``head_topk`` runs eagerly."""
        if not self.method.head_topk:
            self._compiled = compiled_due_step(tuple(settings.to_dict().items()))
            for tensor, dimension in self.shift.by_window():
                mark_dynamic(tensor, dimension)

    def step(self, inputs: dict[str, Any], averages: list[list[float]], unfinished: Tensor) -> DueStep:
        """One due step. ``averages``: the entropy's average and peak, and the random policy's α, of each sample."""
        ema, peak, coin = torch.tensor(averages, device=unfinished.device)
        before = Before(ema, peak, coin, unfinished, self.healthy)
        compiled = self._compiled if self.seam.checked else None
        with self.seam.attached():
            step = (compiled or due_step)(self.seam, self.shift, self.method, inputs, before)
        if compiled is not None:
            # Copies: a CUDA graph writes its results into the same memory again.
            step = DueStep(step.logits, *(result.clone() for result in step[1:]))
        self.healthy = step.healthy
        return step


@cache
def compiled_due_step(settings: tuple[tuple[str, Any], ...]) -> Callable[..., DueStep]:
    """:func:`due_step`, compiled once for each ``settings``."""
    return torch.compile(due_step, **dict(settings))
