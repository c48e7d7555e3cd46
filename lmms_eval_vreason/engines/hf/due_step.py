"""The due steps of one generation, eager and compiled alike."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import CompileConfig

from lmms_eval_vreason.engines.due_step import Before, DueStep, due_step
from lmms_eval_vreason.engines.hf.seam import Seam
from lmms_eval_vreason.engines.hf.upstream import mark_dynamic
from lmms_eval_vreason.method.config import VReason
from lmms_eval_vreason.method.shift import Shift


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
