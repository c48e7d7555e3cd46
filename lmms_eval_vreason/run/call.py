"""One call of ``generate`` for a batch: its arguments, and each sample's tokens read back."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import LogitsProcessorList, PreTrainedModel, ProcessorMixin, StoppingCriteriaList

from lmms_eval_vreason.method import VReason
from lmms_eval_vreason.prompts.budgets import Budgets, Outcome, outcome_without_budgets
from lmms_eval_vreason.prompts.options import ThinkingOptions
from lmms_eval_vreason.prompts.split import TAG, cut_at, opens_thinking
from lmms_eval_vreason.run.inputs import render
from lmms_eval_vreason.run.samples import Sample

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
    processor: ProcessorMixin
    method: VReason
    thinking: ThinkingOptions
    device: torch.device
    positions: str = "trained"


class Call:
    """How a batch of samples with the same settings is generated.

    Attributes:
        arguments: Keyword arguments of ``generate``, beside the inputs.
    """

    def __init__(self, setup: Setup, samples: Sequence[Sample], prompt_length: int) -> None:
        """Args: ``prompt_length``, tokens before the first generated one, padding included."""
        self.setup, self.samples, self.tokenizer = setup, samples, setup.processor.tokenizer
        self._opened = [opens_thinking(render(setup.processor, sample)) for sample in samples]
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
                "stopping_criteria": StoppingCriteriaList([budgets.criteria]),
            }
        elif settings.until and not any(self._opened):  # They end the answer, and must not end the thinking.
            self.arguments |= {"stop_strings": list(settings.until), "tokenizer": self.tokenizer}

    def outcome(self, row: int, ids: list[int]) -> Outcome:
        """The thinking and the answer in a sample's generated tokens; the answer ends at the first of ``until``."""
        tokenizer, special = self.tokenizer, set(self.tokenizer.all_special_ids)
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

    def texts(self, ids: Sequence[int]) -> list[str]:
        """Each token by itself, as text."""
        return [self.tokenizer.decode([token]) for token in ids]

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
