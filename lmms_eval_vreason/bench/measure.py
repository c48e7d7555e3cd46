"""Timing and memory of one generation, taken the same way for every variant."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from lmms_eval_vreason.bench.sizes import Prompt
from lmms_eval_vreason.bench.variants import Variant
from lmms_eval_vreason.engines.hf.generation import Generation
from lmms_eval_vreason.method import VReason


class _Stamps(StoppingCriteria):
    """Never stops; notes when the first and the last token were chosen. Both loops call it once a token."""

    def __init__(self, tokens: int, clock: Callable[[], float]) -> None:
        self.tokens, self.clock, self.calls = tokens, clock, 0
        self.times: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        self.calls += 1
        if self.calls in (1, self.tokens):
            if input_ids.is_cuda:
                torch.cuda.synchronize(input_ids.device)
            self.times.append(self.clock())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def clock(device_type: str) -> tuple[str, Callable[[], float]]:
    """The clock and its name. On one CPU thread it is the thread's own time, which a busy machine leaves alone."""
    if device_type == "cpu" and torch.get_num_threads() == 1:
        return "CPU time", time.process_time
    return "wall time", time.perf_counter


@dataclass(frozen=True)
class Stage:
    """What every variant is measured on: a model, a cached prompt, and ``tokens`` decoded from there."""

    model: Any
    prompt: Prompt
    tokens: int

    def generate(self, variant: Variant, new_tokens: int, **options: Any) -> Generation:
        """``new_tokens`` tokens after the prompt."""
        inputs = self.prompt.inputs(self.model, kind="static" if variant.compiled else "dynamic", new_tokens=new_tokens)
        return variant.generate(self.model, **inputs, **options)


def seconds_per_token(variant: Variant, stage: Stage) -> float:
    """Seconds of one decoding step, the mean over ``stage.tokens``; the first token, from the prefill, is left out.

    Raises:
        RuntimeError: The generation ended early, so that there is nothing to compare.
    """
    expected = stage.tokens + 1
    stamps = _Stamps(expected, clock(stage.model.device.type)[1])
    generation = stage.generate(variant, expected, stopping_criteria=StoppingCriteriaList([stamps]))
    made = generation.sequences.shape[1] - stage.prompt.input_ids.shape[1]
    if made != expected:
        raise RuntimeError(f"{variant.name} made {made} tokens instead of {expected}")
    return (stamps.times[1] - stamps.times[0]) / stage.tokens


def gated(variant: Variant, stage: Stage, passing: float) -> Variant:
    """The variant with a ``min_entropy`` that the share ``passing`` of plain ``generate``'s own tokens reach."""
    plain = Variant("", VReason(policy="off", compile="off"))
    traces = stage.generate(plain, stage.tokens + 1).traces
    entropies = np.concatenate([trace.entropy[1:] for trace in traces])
    # Of two entropies around the quantile the lower one, which passes too.
    gate = float(np.quantile(entropies, 1 - passing, method="lower"))
    return replace(variant, method=replace(variant.method or VReason(), min_entropy=gate))


def updated_share(variant: Variant, stage: Stage) -> float:
    """The share of the timed tokens that had an update."""
    traces = stage.generate(variant, stage.tokens + 1).traces
    return sum(trace.updates for trace in traces) / (stage.tokens * len(stage.prompt.input_ids))


def peak_bytes(variant: Variant, stage: Stage) -> int:
    """The most bytes of tensors at any time of one generation: weights, prompt cache and all that it makes.

    CUDA: the allocator's peak. CPU: the running sum of the allocations and releases that torch's profiler records.
    """
    model, stage = stage.model, replace(stage, prompt=replace(stage.prompt, kept={}))
    tensors = (*model.parameters(), *model.buffers())
    weights = sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
        torch.cuda.reset_peak_memory_stats(model.device)
        # The master copy of the prompt's cache is the benchmark's own.
        others = torch.cuda.memory_allocated(model.device) - weights
        stage.generate(variant, stage.tokens)
        return int(torch.cuda.max_memory_allocated(model.device) - others)
    # The cache is made within the profile, so that its release is recorded as well.
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        stage.generate(variant, stage.tokens)
    events = profile.profiler.kineto_results.events()
    changes: list[int] = [event.nbytes() for event in events if event.name() == "[memory]"]
    return int(weights + max(accumulate(changes, initial=0)))
