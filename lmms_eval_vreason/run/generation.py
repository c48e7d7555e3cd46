"""A batch of samples with their media → completions: inputs, V-Reason's generate, the split answers, what it cost."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import LogitsProcessorList, PreTrainedModel, StoppingCriteriaList

from lmms_eval_vreason.families.family import video_tower
from lmms_eval_vreason.method import Trace, VReason
from lmms_eval_vreason.prompts.budgets import Budgets, Outcome, outcome_without_budgets
from lmms_eval_vreason.prompts.options import ThinkingOptions
from lmms_eval_vreason.prompts.split import TAG, cut_at, opens_thinking
from lmms_eval_vreason.run.batch_size import is_out_of_memory, release
from lmms_eval_vreason.run.inputs import PromptProcessor
from lmms_eval_vreason.run.samples import Sample
from lmms_eval_vreason.run.shared_prefixes import SharedPrefixes
from lmms_eval_vreason.run.stopwatch import timed

# lmms-eval's own Qwen classes give this much where a task names no budget.
_DEFAULT_NEW_TOKENS = 128


@dataclass(frozen=True)
class Setup:
    """What answers a run's samples.

    Attributes:
        device: Where the inputs go.
        positions: As in :func:`~lmms_eval_vreason.engines.hf.generation.generate`.
    """

    model: PreTrainedModel
    processor: PromptProcessor
    method: VReason
    thinking: ThinkingOptions
    device: torch.device
    positions: str = "trained"


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

    def in_force(self) -> dict[str, Any]:
        """What the loaded model settles of what changes its answers, for the journal."""
        model = self.setup.model
        return {
            "model_type": model.config.model_type,
            "attention": model.config.get_text_config()._attn_implementation,
            "dtype": str(model.dtype).removeprefix("torch."),
            "repetition_penalty": getattr(model.generation_config, "repetition_penalty", None),
        }

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
        with timed(video_tower(setup.model), setup.device) as vision_seconds:
            make_inputs = self.prefixes.inputs if share else self.prefixes.unshared_inputs
            inputs = make_inputs(samples, media)
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
        for row, (ids, trace) in enumerate(zip(result.new_tokens(prompt_length), result.traces, strict=True)):
            counts = lengths[row], inputs.prefilled_tokens[row]
            texts = [call.tokenizer.decode([token]) for token in ids]
            completions.append(Completion(call.outcome(row, ids), texts, *counts, trace, dict(shares), peak))
        return completions


class Call:
    """How a batch of samples with the same settings is generated.

    Attributes:
        arguments: Keyword arguments of ``generate``, beside the inputs.
    """

    def __init__(self, setup: Setup, samples: Sequence[Sample], prompt_length: int) -> None:
        """Args: ``prompt_length``, tokens before the first generated one, padding included."""
        self.setup, self.samples, self.tokenizer = setup, samples, setup.processor.tokenizer
        self._opened = [opens_thinking(setup.processor.render(sample)) for sample in samples]
        self._budgets: Budgets | None = None
        settings, thinking = samples[0].settings, setup.thinking
        self.arguments: dict[str, Any] = {"max_new_tokens": _DEFAULT_NEW_TOKENS, **settings.generation}
        self.arguments |= {"positions": setup.positions, "generators": self._generators()}
        if thinking.thinking:
            budgets = self._budgets = Budgets(
                self.tokenizer,
                self._opened,
                prompt_length,
                max_thinking_tokens=thinking.max_thinking_tokens,
                max_answer_tokens=thinking.max_answer_tokens,
            )
            self.arguments |= {
                "max_new_tokens": budgets.max_new_tokens,
                "logits_processor": LogitsProcessorList([budgets]),
                "stopping_criteria": StoppingCriteriaList([budgets.advance]),
            }
        elif settings.until and not any(self._opened):  # They end the answer, and must not end the thinking.
            self.arguments |= {"stop_strings": list(settings.until), "tokenizer": self.tokenizer}

    def outcome(self, row: int, ids: list[int]) -> Outcome:
        """The thinking and the answer in a sample's generated tokens; the answer ends at the first of ``until``."""
        tokenizer, special = self.tokenizer, self.setup.processor.special
        # Tags are special tokens in some checkpoints, and stay.
        shown = [t for t in ids if t not in special or TAG.fullmatch(tokenizer.convert_ids_to_tokens(t))]
        text = tokenizer.decode(shown)
        if self._budgets is not None:
            outcome = self._budgets.outcome(row, text, len(ids))
        else:
            ends = self.setup.model.generation_config.eos_token_id
            ended = bool(ids) and ids[-1] in (ends if isinstance(ends, list) else [ends])
            cut = len(ids) >= self.arguments["max_new_tokens"] and not ended
            outcome = outcome_without_budgets(tokenizer, ids, text, opened=self._opened[row], cut=cut)
        return replace(outcome, answer=cut_at(outcome.answer, self.samples[row].settings.until))

    def _generators(self) -> list[torch.Generator] | None:
        """One a sample, seeded by who the sample is: its draws don't depend on order, batch or process."""
        if not self.samples[0].settings.generation["do_sample"]:
            return None
        generators = []
        for sample in self.samples:
            who = repr((self.setup.method.seed, sample.task, sample.split, sample.doc_id, sample.repeat))
            seed = int.from_bytes(hashlib.sha256(who.encode()).digest()[:7], "big")
            generators.append(torch.Generator(self.setup.device).manual_seed(seed))
        return generators
