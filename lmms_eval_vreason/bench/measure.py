"""Timing and memory of one generation, taken the same way for every variant."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from lmms_eval_vreason.bench.sizes import Prompt
from lmms_eval_vreason.bench.variants import Variant


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


def seconds_per_token(variant: Variant, model: PreTrainedModel, prompt: Prompt, tokens: int) -> float:
    """Seconds of one decoding step, the mean over ``tokens`` of them; the first token, from the prefill, is left out.

    Raises:
        RuntimeError: The generation ended early, so that there is nothing to compare.
    """
    stamps = _Stamps(tokens + 1, clock(model.device.type)[1])
    inputs = prompt.inputs(model, kind=variant.cache, new_tokens=tokens + 1)
    sequences = variant.generate(model, **inputs, stopping_criteria=StoppingCriteriaList([stamps]))
    made = sequences.shape[1] - prompt.input_ids.shape[1]
    if made != tokens + 1:
        raise RuntimeError(f"{variant.name} made {made} tokens instead of {tokens + 1}")
    return (stamps.times[1] - stamps.times[0]) / tokens


def peak_bytes(variant: Variant, model: PreTrainedModel, prompt: Prompt, tokens: int) -> int:
    """The most bytes of tensors at any time of one generation: weights, prompt cache and all that it makes.

    CUDA: the allocator's peak. CPU: the running sum of the allocations and releases that torch's profiler records.
    """
    prompt = replace(prompt, kept={})
    weights = sum({tensor.data_ptr(): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}.values())
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
        torch.cuda.reset_peak_memory_stats(model.device)
        # The master copy of the prompt's cache is the benchmark's own.
        others = torch.cuda.memory_allocated(model.device) - weights
        variant.generate(model, **prompt.inputs(model, kind=variant.cache, new_tokens=tokens))
        return torch.cuda.max_memory_allocated(model.device) - others
    # The cache is made within the profile, so that its release is recorded as well.
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        variant.generate(model, **prompt.inputs(model, kind=variant.cache, new_tokens=tokens))
    now = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return weights + peak
