"""Prefixes that several prompts share: which questions have one in common, and their prefill.

A prompt's prefix ends with its last image or video. Questions with the same prefix (chat template, text and media up to
there) share one run of the vision tower and one prefill. The suffix after it is each question's own.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from loguru import logger
from transformers import BatchFeature, PreTrainedModel

from lmms_eval_vreason.engines.hf.prefix import Prefix, continued, prefill, prefix_bytes
from lmms_eval_vreason.families.family import why_not_shared
from lmms_eval_vreason.media.media import Media
from lmms_eval_vreason.run.inputs import PromptProcessor, check_context
from lmms_eval_vreason.run.samples import Sample
from lmms_eval_vreason.run.stopwatch import now

# Media and text that two prefixes must have in common to be the same; None for a prefix that is never shared.
Key = tuple[tuple[Media, ...], str] | None
# A prompt: the key of its prefix, the prefix's text, the suffix's text.
Split = tuple[Key, str, str]


@dataclass(frozen=True)
class BatchInputs:
    """What a batch is generated from.

    Attributes:
        arguments: Keyword arguments of ``generate``.
        prefilled_tokens: A sample's prompt tokens that run through the model: all, or its suffix's and, where the
            sample was the first to need it, its shared prefix's.
        prefix_seconds: Wall time of the shared prefixes' prefill, vision tower included.
    """

    arguments: Mapping[str, Any]
    prefilled_tokens: list[int]
    prefix_seconds: float = 0.0


class SharedPrefixes:
    """The prefilled prefixes of the prompts that are waiting.

    The device holds the prefixes of the batch that is being answered, and between two batches at most one: the last
    sample's, if further questions wait for it. A prefix that only one waiting sample has is not prefilled apart.
    """

    def __init__(
        self, model: PreTrainedModel, processor: PromptProcessor, device: torch.device, positions: str = "trained"
    ) -> None:
        """``positions``: as in :func:`~lmms_eval_vreason.engines.hf.generation.generate`."""
        self.model, self.processor, self.device, self.positions = model, processor, device, positions
        self._why_not = why_not_shared(model)
        self._bound = 0.0
        self._waiting: Counter[Key] = Counter()
        self._held: dict[Key, Prefix] = {}

    def expect(self, samples: Sequence[Sample], gigabytes: float) -> None:
        """Counts the questions on each prefix, over all samples that will be answered; drops what was held.

        Args:
            gigabytes: The most that a batch's prefixes may take (10⁹ bytes), beside the batch's own cache. A batch that
                needs more falls back to an unshared prefill. 0 shares nothing.
        """
        self.drop()
        self._bound = 0.0 if self._why_not else gigabytes * 1e9
        counts: Counter[Key] = Counter()
        for sample in samples:
            with suppress(Exception):  # The chat template refuses the prompt: the sample fails when it is answered.
                counts[self._split(sample)[0]] += 1
        self._waiting = Counter({key: count for key, count in counts.items() if key is not None and count > 1})
        if self._waiting and gigabytes and self._why_not:
            logger.info(f"Each question prefills its whole prompt: {self._why_not}")

    def drop(self) -> None:
        """Frees the prefixes that are held; they are prefilled again where they are needed."""
        self._held.clear()

    def answered(self, samples: Sequence[Sample]) -> None:
        """Counts the samples off; drops a prefix for which no further question waits."""
        if not self._bound:
            return
        self._waiting -= Counter(self._split(sample)[0] for sample in samples)
        self._held = {key: prefix for key, prefix in self._held.items() if self._waiting[key]}

    def wanted(self, samples: Sequence[Sample]) -> bool:
        """Whether a prefix of the batch is held, or is one that further questions wait for."""
        keys = [self._split(sample)[0] for sample in samples] if self._bound else []
        return any(key in self._held or self._waiting[key] > 1 for key in keys)

    def inputs(self, samples: Sequence[Sample], media: Sequence[Sequence[Any]]) -> BatchInputs:
        """Prefills the prefixes that are not held, and gives the batch that continues from them.

        Falls back to an unshared prefill if the batch's prefixes do not fit into the bound.

        Raises:
            ValueError: A prompt that does not fit into the model's context.
        """
        split = [self._split(sample) for sample in samples]
        # A prefix that this batch does not need makes room.
        self._held = {key: self._held[key] for key, _, _ in split if key in self._held}
        missing = self._missing(split, media)
        tokens = [inputs["input_ids"].shape[1] for inputs in missing.values()]
        tokens += [prefix.tokens for prefix in self._held.values()]
        if prefix_bytes(self.model, sum(tokens)) > self._bound:
            self.drop()
            return self.unshared_inputs(samples, media)
        started = now(self.device)
        fresh = {
            row: prefill(self.model, dict(inputs.to(self.device)), self.positions) for row, inputs in missing.items()
        }
        seconds = now(self.device) - started
        self._held |= {split[row][0]: prefix for row, prefix in fresh.items() if split[row][0] is not None}
        prefixes = [fresh.get(row, self._held.get(key)) for row, (key, _, _) in enumerate(split)]
        tokenizer = self.processor.tokenizer
        suffixes = [
            tokenizer(suffix, add_special_tokens=False, return_tensors="pt")["input_ids"][0].to(self.device)
            for _, _, suffix in split
        ]
        arguments = continued(self.model, prefixes, suffixes)
        check_context(self.model, arguments["attention_mask"])
        prefilled = [len(suffix) + (fresh[row].tokens if row in fresh else 0) for row, suffix in enumerate(suffixes)]
        left = self._waiting - Counter(key for key, _, _ in split)
        last = next((key for key, _, _ in reversed(split) if left[key]), None)
        self._held = {last: self._held[last]} if last in self._held else {}
        return BatchInputs(arguments, prefilled, seconds)

    def unshared_inputs(self, samples: Sequence[Sample], media: Sequence[Sequence[Any]]) -> BatchInputs:
        """The batch by itself: whole prompts, and no prefix. Raises ValueError as :meth:`inputs`."""
        inputs = self.processor.process([self.processor.render(sample) for sample in samples], media)
        check_context(self.model, inputs["attention_mask"])
        return BatchInputs(inputs.to(self.device), inputs["attention_mask"].sum(dim=1).tolist())

    def _split(self, sample: Sample) -> Split:
        prefix, suffix = self.processor.cut(self.processor.render(sample))
        # Frames that a task hands over in memory have no name by which two could be found the same.
        return ((sample.media, prefix) if sample.media and sample.movable else None), prefix, suffix

    def _missing(self, split: list[Split], media: Sequence[Sequence[Any]]) -> dict[int, BatchFeature]:
        """The processor's inputs of the prefixes that are not held, by the first row that needs each."""
        missing, seen = {}, set(self._held)
        for row, ((key, text, _), items) in enumerate(zip(split, media, strict=True)):
            if not text or key in seen:
                continue
            missing[row] = self.processor.process([text], [items])
            check_context(self.model, missing[row]["attention_mask"])
            if key is not None:
                seen.add(key)
                if prefix_bytes(self.model, missing[row]["input_ids"].shape[1]) > self._bound:
                    # Too large for the bound: not tried again for each of its questions.
                    self._waiting.pop(key, None)
        return missing
