"""A batch of samples with their media → completions: inputs, V-Reason's generate, the split answers, what it cost."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lmms_eval_vreason.method import Trace, VReason
from lmms_eval_vreason.prompts.budgets import Outcome
from lmms_eval_vreason.run.batch_size import is_out_of_memory, release
from lmms_eval_vreason.run.call import Call, Setup
from lmms_eval_vreason.run.samples import Sample
from lmms_eval_vreason.run.shared_prefixes import SharedPrefixes
from lmms_eval_vreason.run.stopwatch import timed


@dataclass(frozen=True)
class Completion:
    """One sample's outcome. Tokens are counted without padding; ``seconds`` are its share of the batch.

    Attributes:
        tokens: The generated ones, each as text.
        prefilled_tokens: Prompt tokens that ran through the model for this sample: all of them, or, where the prompt's
            prefix is shared, those after it; the prefix counts for the sample that needed it first.
        seconds: ``generate`` is the whole; of it, ``vision`` (the vision tower), ``prefill`` (the prompt's tokens),
            ``ordinary`` and ``due`` (steps). A shared prefix is charged to the batch that prefilled it.
    """

    outcome: Outcome
    tokens: list[str]
    input_tokens: int
    prefilled_tokens: int
    trace: Trace
    seconds: dict[str, float]
    peak_memory_bytes: int | None


class Generator:
    """Generates batches of samples with one model under one method."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.method = setup, setup.method
        self.prefixes = SharedPrefixes(setup.model, setup.processor, setup.device, setup.positions)

    @torch.no_grad()
    def generate(
        self, samples: Sequence[Sample], media: Sequence[Sequence[Any]], method: VReason | None = None
    ) -> list[Completion]:
        """Answers a batch whose samples share their generation settings; ``method`` stands in for the generator's.

        From shared prefixes where there are any. A sample that does not fit with them is tried without.

        Args:
            media: For each sample its read images and videos, in order.

        Raises:
            ValueError: A prompt that does not fit into the model's context with its budgets.
        """
        method = method or self.method
        share = self.prefixes.wanted(samples)
        try:
            return self._decode(samples, media, method, share)
        except Exception as error:
            if is_out_of_memory(error):
                self.prefixes.drop()
            if not is_out_of_memory(error) or not share or len(samples) > 1:
                raise  # Short of memory, the caller tries again with fewer.
            release(error)
        return self._decode(samples, media, method, share=False)

    def _decode(
        self, samples: Sequence[Sample], media: Sequence[Sequence[Any]], method: VReason, share: bool
    ) -> list[Completion]:
        setup, started = self.setup, time.perf_counter()
        if setup.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(setup.device)
        with timed(setup.model.model.visual, setup.device) as vision_seconds:
            shared = self.prefixes.inputs(samples, media) if share else None
            inputs = shared or self.prefixes.unshared_inputs(samples, media)
            prompt_length = inputs.arguments["input_ids"].shape[1]
            lengths = inputs.arguments["attention_mask"].sum(dim=1).tolist()
            call = Call(setup, samples, prompt_length)
            result = method.generate(setup.model, **inputs.arguments, **call.arguments)
        self.prefixes.answered(samples)
        steps = result.traces[0]  # The batch's times are the same in each.
        vision = sum(vision_seconds)
        seconds = {
            "generate": time.perf_counter() - started,
            "vision": vision,
            "prefill": inputs.prefix_seconds + steps.seconds_prefill - vision,
            "ordinary": steps.seconds_ordinary,
            "due": steps.seconds_due,
        }
        shares = {name: value / len(samples) for name, value in seconds.items()}
        peak = torch.cuda.max_memory_allocated(setup.device) if setup.device.type == "cuda" else None
        completions = []
        for row, trace in enumerate(result.traces):
            ids = result.sequences[row, prompt_length : prompt_length + len(trace.entropy)].tolist()
            counts = lengths[row], inputs.prefilled_tokens[row]
            completions.append(Completion(call.outcome(row, ids), call.texts(ids), *counts, trace, dict(shares), peak))
        return completions
