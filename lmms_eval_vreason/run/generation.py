"""A batch of samples with their media → completions: inputs, budgets, V-Reason's generate, the split answers."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import BatchFeature, LogitsProcessorList, PreTrainedModel, ProcessorMixin, StoppingCriteriaList

from lmms_eval_vreason.engines.hf.autocompile import AutoCompile
from lmms_eval_vreason.method import Trace, VReason
from lmms_eval_vreason.prompts.budgets import Budgets, outcome_without_budgets
from lmms_eval_vreason.prompts.options import ThinkingOptions
from lmms_eval_vreason.prompts.split import TAG, cut_at, opens_thinking
from lmms_eval_vreason.run.batch_size import is_out_of_memory, release
from lmms_eval_vreason.run.inputs import check_context, process, render
from lmms_eval_vreason.run.samples import Sample
from lmms_eval_vreason.run.shared_prefixes import SharedPrefixes
from lmms_eval_vreason.run.stopwatch import Stopwatch, timed

# lmms-eval's own Qwen classes give this much where a task names no budget.
_DEFAULT_NEW_TOKENS = 128


@dataclass(frozen=True)
class Completion:
    """One sample's outcome. Tokens are counted without padding; ``seconds`` are its share of the batch.

    Attributes:
        prefilled_tokens: Prompt tokens that ran through the model for this sample: all of them, or, where the prompt's
            start is shared, those after it; the start's count for the sample that needed it first.
        seconds: ``generate`` is the whole; of it, ``vision`` (the vision tower), ``prefill`` (the prompt's tokens),
            ``ordinary`` and ``due`` (steps). A shared start's cost is borne by the batch that prefilled it.
    """

    thinking: str
    answer: str
    thinking_cut: bool
    answer_cut: bool
    input_tokens: int
    output_tokens: int
    thinking_tokens: int
    prefilled_tokens: int
    tokens: list[str]
    trace: Trace
    seconds: dict[str, float]
    peak_memory_bytes: int | None


@dataclass(frozen=True)
class _Cost:
    """What a batch has cost besides its steps: when it began, the vision tower's time, and its starts' prefill."""

    started: float
    vision: Stopwatch
    starts_seconds: float
    prefilled_tokens: list[int]

    def shares(self, trace: Trace, batch: int) -> dict[str, float]:
        """Each sample's share of the seconds; the trace is any of the batch's, which have its times in common."""
        seconds = {
            "generate": time.perf_counter() - self.started,
            "vision": self.vision.seconds,
            "prefill": self.starts_seconds + trace.seconds_prefill - self.vision.seconds,
            "ordinary": trace.seconds_ordinary,
            "due": trace.seconds_due,
        }
        return {name: value / batch for name, value in seconds.items()}


class Generator:
    """Generates batches of samples with one model under one method."""

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        method: VReason,
        thinking: ThinkingOptions,
        device: torch.device,
        *,
        positions: str = "trained",
    ) -> None:
        """``positions``: as in :func:`~lmms_eval_vreason.engines.hf.generation.generate`."""
        self.model, self.processor, self.method, self.thinking, self.device = model, processor, method, thinking, device
        self.tokenizer, self.positions = processor.tokenizer, positions
        self.prefixes = SharedPrefixes(model, processor, device, positions)
        self.compiling = AutoCompile(model, method, device)
        self._hidden_ids = {
            token
            for token in self.tokenizer.all_special_ids
            if not TAG.fullmatch(self.tokenizer.convert_ids_to_tokens(token))
        }
        ends = model.generation_config.eos_token_id
        self._end_ids = set(ends if isinstance(ends, list) else [ends])

    def expect(
        self, samples: Sequence[Sample], shared_prefix: float, *, batch: int | None = None, share: float = 1.0
    ) -> None:
        """Says which samples are to be answered, so that questions on one video share its prefill.

        Args:
            shared_prefix: As in :class:`~lmms_eval_vreason.run.options.RunOptions`, GB.
            batch: How many are answered together; None if that is not known.
            share: Of the samples, that this process will answer.
        """
        self.prefixes.expect(samples, shared_prefix)
        self.compiling.expect(batch, int(share * sum(map(self._most_tokens, samples))))

    def free(self) -> None:
        """Frees what is held between batches, when no further sample is expected."""
        self.prefixes.free()
        self.compiling.expect(None, 0)

    @torch.no_grad()
    def generate(
        self, samples: Sequence[Sample], media: Sequence[Sequence[Any]], method: VReason | None = None
    ) -> list[Completion]:
        """Answers a batch whose samples share their generation settings; ``method`` stands in for the generator's.

        Args:
            media: For each sample its read images and videos, in order.

        Raises:
            ValueError: A prompt that does not fit into the model's context with its budgets.
        """
        method = method or self.method
        if self.compiling.is_due(len(samples)):
            inputs = self._inputs(samples, media).to(self.device)
            self.compiling.hold_trial(method, inputs, max(map(self._most_tokens, samples)))
        chosen = self.compiling.applied(method, len(samples))
        try:
            return self._answer(samples, media, chosen)
        except Exception as error:
            if chosen == method or is_out_of_memory(error):
                raise
            self.compiling.give_up(error)
        return self._answer(samples, media, method)

    def _answer(self, samples: Sequence[Sample], media: Sequence[Sequence[Any]], method: VReason) -> list[Completion]:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        try:
            completions = self._generate_shared(samples, media, method)
            if completions is None:
                completions = self._generate_ordinary(samples, media, method)
        except Exception as error:
            if is_out_of_memory(error):
                self.prefixes.drop()
            raise
        self.prefixes.answered(samples)
        return completions

    def _generate_shared(
        self, samples: Sequence[Sample], media: Sequence[Sequence[Any]], method: VReason
    ) -> list[Completion] | None:
        """From prefilled starts; None where the ordinary way is the better one, or the last one that may fit."""
        started = time.perf_counter()
        try:
            with timed(self.model.model.visual, self.device) as vision:
                shared = self.prefixes.inputs(samples, media)
                if shared is None:
                    return None
                cost = _Cost(started, vision, shared.seconds, shared.prefilled_tokens)
                return self._generate(samples, method, shared.arguments, cost)
        except Exception as error:
            if len(samples) > 1 or not is_out_of_memory(error):
                raise  # Short of memory, the caller tries again with fewer.
            self.prefixes.drop()
            release(error)
        return None

    def _generate_ordinary(
        self, samples: Sequence[Sample], media: Sequence[Sequence[Any]], method: VReason
    ) -> list[Completion]:
        started = time.perf_counter()
        inputs = self._inputs(samples, media)
        with timed(self.model.model.visual, self.device) as vision:
            cost = _Cost(started, vision, 0.0, inputs["attention_mask"].sum(dim=1).tolist())
            return self._generate(samples, method, inputs.to(self.device), cost)

    def _inputs(self, samples: Sequence[Sample], media: Sequence[Sequence[Any]]) -> BatchFeature:
        inputs = process(self.processor, [render(self.processor, sample) for sample in samples], media)
        check_context(self.model, inputs["attention_mask"])
        return inputs

    def _generate(
        self, samples: Sequence[Sample], method: VReason, inputs: Mapping[str, Any], cost: "_Cost"
    ) -> list[Completion]:
        prompt_length = inputs["input_ids"].shape[1]
        input_tokens = inputs["attention_mask"].sum(dim=1).tolist()
        opened = [opens_thinking(render(self.processor, sample)) for sample in samples]
        budgets, arguments = self._arguments(samples, opened, prompt_length)
        arguments |= {"generators": self._generators(samples), "positions": self.positions}
        result = method.generate(self.model, **inputs, **arguments)
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None
        seconds = cost.shares(result.traces[0], len(samples))
        return [
            self._completion(
                result.sequences[row, prompt_length : prompt_length + len(trace.entropy)].tolist(),
                row=row,
                opened=opened[row],
                budgets=budgets,
                until=samples[row].settings.until,
                max_new_tokens=arguments["max_new_tokens"],
                input_tokens=input_tokens[row],
                prefilled_tokens=cost.prefilled_tokens[row],
                trace=trace,
                seconds=dict(seconds),
                peak_memory_bytes=peak,
            )
            for row, trace in enumerate(result.traces)
        ]

    def _arguments(
        self, samples: Sequence[Sample], opened: Sequence[bool], prompt_length: int
    ) -> tuple[Budgets | None, dict[str, Any]]:
        settings = samples[0].settings
        arguments = {"max_new_tokens": _DEFAULT_NEW_TOKENS, **settings.generation}
        if not self.thinking.thinking:
            if settings.until and not any(opened):  # They end the answer, and must not end the thinking.
                arguments |= {"stop_strings": list(settings.until), "tokenizer": self.tokenizer}
            return None, arguments
        budgets = Budgets(
            self.tokenizer,
            opened,
            prompt_length,
            max_thinking_tokens=self.thinking.max_thinking_tokens,
            max_answer_tokens=self.thinking.max_answer_tokens,
        )
        arguments |= {
            "max_new_tokens": budgets.max_new_tokens,
            "logits_processor": LogitsProcessorList([budgets]),
            "stopping_criteria": StoppingCriteriaList([budgets.criteria]),
        }
        return budgets, arguments

    def _most_tokens(self, sample: Sample) -> int:
        """That may be generated for it."""
        if self.thinking.thinking:
            return self.thinking.max_thinking_tokens + self.thinking.max_answer_tokens
        return int(sample.settings.generation.get("max_new_tokens", _DEFAULT_NEW_TOKENS))

    def _generators(self, samples: Sequence[Sample]) -> list[torch.Generator] | None:
        """One a sample, seeded by who the sample is: its draws don't depend on order, batch or process."""
        if not samples[0].settings.generation["do_sample"]:
            return None
        generators = []
        for sample in samples:
            who = repr((self.method.seed, sample.task, sample.split, sample.doc_id, sample.repeat))
            seed = int.from_bytes(hashlib.sha256(who.encode()).digest()[:7], "big")
            generators.append(torch.Generator(self.device).manual_seed(seed))
        return generators

    def _completion(
        self,
        ids: list[int],
        *,
        row: int,
        opened: bool,
        budgets: Budgets | None,
        until: Sequence[str],
        max_new_tokens: int,
        **rest: Any,
    ) -> Completion:
        text = self.tokenizer.decode([token for token in ids if token not in self._hidden_ids])
        if budgets is None:
            ended = bool(ids) and ids[-1] in self._end_ids
            cut = len(ids) >= max_new_tokens and not ended
            outcome = outcome_without_budgets(self.tokenizer, ids, text, opened=opened, cut=cut)
        else:
            outcome = budgets.outcome(row, text, len(ids))
        return Completion(
            thinking=outcome.thinking,
            answer=cut_at(outcome.answer, until),
            thinking_cut=outcome.thinking_cut,
            answer_cut=outcome.answer_cut,
            output_tokens=len(ids),
            thinking_tokens=outcome.thinking_tokens,
            tokens=[self.tokenizer.decode([token]) for token in ids],
            **rest,
        )
