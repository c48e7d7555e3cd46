"""Which questions share the start of their prompts, and the prefilled starts that they go on from.

The start of a prompt ends with its last image or video. Questions whose starts are the same (the chat template, the
text and the media up to there) share one run of the vision tower and one prefill. What follows is each question's own.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import BatchFeature, PreTrainedModel

from lmms_eval_vreason.engines.hf.prefix import Prefix, continued, prefill, prefix_bytes
from lmms_eval_vreason.media.media import Media
from lmms_eval_vreason.run.inputs import check_context, process, render
from lmms_eval_vreason.run.samples import Sample
from lmms_eval_vreason.run.stopwatch import now

# What the starts of two prompts have to have in common to be one.
Key = tuple[tuple[Media, ...], str]
# A prompt: by what its start is shared (None: by nothing), the start's text, the rest's text.
Split = tuple[Key | None, str, str]


@dataclass(frozen=True)
class SharedInputs:
    """A batch whose starts are prefilled.

    Attributes:
        arguments: Keyword arguments of ``generate``.
        prefilled_tokens: A sample's prompt tokens that run through the model: those after its start, and its start's
            where the sample was the first to need it.
        seconds: Wall time of the starts' prefill, vision tower included.
    """

    arguments: dict[str, Any]
    prefilled_tokens: list[int]
    seconds: float


@dataclass
class _Starts:
    """The starts of one batch, row by row."""

    prefixes: list[Prefix | None] = field(default_factory=list)
    fresh: list[int] = field(default_factory=list)  # Tokens that were prefilled for the row.
    seconds: float = 0.0


class SharedPrefixes:
    """The prefilled starts of the prompts that are waiting.

    Held on the device are those that the present batch needs, and between two batches at most one: the last sample's,
    if further questions wait for it. A start that only one waiting sample has is left to the ordinary way.
    """

    def __init__(self, model: PreTrainedModel, processor, device: torch.device) -> None:
        self.model, self.processor, self.device = model, processor, device
        self._vision_end = processor.tokenizer.convert_ids_to_tokens(model.config.vision_end_token_id)
        self._bound = 0.0
        self._waiting: Counter[Key] = Counter()
        self._held: dict[Key, Prefix] = {}

    def expect(self, samples: Sequence[Sample], gigabytes: float) -> None:
        """Takes note of all samples that will be answered; drops what was held.

        Args:
            gigabytes: The most that a batch's starts may take (10⁹ bytes), beside the batch's own cache; a batch that
                needs more goes the ordinary way. 0 shares nothing.
        """
        self.drop()
        self._bound = gigabytes * 1e9
        counts: Counter[Key] = Counter()
        for sample in samples:
            try:
                key, _, _ = self._split(sample)
            except Exception:  # What a chat template refuses is its sample's own fault, and met when that is answered.
                continue
            if key is not None:
                counts[key] += 1
        self._waiting = Counter({key: count for key, count in counts.items() if count > 1})

    def drop(self) -> None:
        """Frees the starts that are held; they are made again where they are needed."""
        self._held.clear()

    def answered(self, samples: Sequence[Sample]) -> None:
        """Counts the samples off: what nobody waits for any more is dropped."""
        self._waiting -= Counter(self._split(sample)[0] for sample in samples)
        for key in [key for key in self._held if not self._waiting[key]]:
            del self._held[key]

    def inputs(self, samples: Sequence[Sample], media: Sequence[Sequence[Any]]) -> SharedInputs | None:
        """Prefills the starts that are not held and gives the batch that goes on from them.

        Returns:
            None where the batch is better answered in the ordinary way: nothing in it is shared, or its starts do not
            fit into the bound.

        Raises:
            ValueError: A prompt that does not fit into the model's context.
        """
        split = [self._split(sample) for sample in samples]
        if not self._bound or not any(key in self._held or self._waiting[key] > 1 for key, _, _ in split):
            return None
        starts = self._starts(split, media)
        if starts is None:
            return None
        tokenizer = self.processor.tokenizer
        suffixes = [
            tokenizer(rest, add_special_tokens=False, return_tensors="pt")["input_ids"][0].to(self.device)
            for _, _, rest in split
        ]
        arguments = continued(self.model, starts.prefixes, suffixes)
        check_context(self.model, arguments["attention_mask"])
        own = [fresh + len(suffix) for fresh, suffix in zip(starts.fresh, suffixes, strict=True)]
        self._keep_for_the_next(split)
        return SharedInputs(arguments, own, starts.seconds)

    def _split(self, sample: Sample) -> Split:
        start, end, rest = render(self.processor, sample).rpartition(self._vision_end)
        # Frames that a task hands over itself have no name by which to tell whether two are the same.
        named = bool(sample.media) and all(item.is_path for item in sample.media)
        return ((sample.media, start) if named else None), start + end, rest

    def _starts(self, split: list[Split], media: Sequence[Sequence[Any]]) -> _Starts | None:
        """A start for each row, None where they do not fit into the bound."""
        # What this batch does not need makes room.
        self._held = {key: self._held[key] for key, _, _ in split if key in self._held}
        missing = self._missing(split, media)
        tokens = [inputs["input_ids"].shape[1] for inputs in missing.values()]
        tokens += [prefix.tokens for prefix in self._held.values()]
        if prefix_bytes(self.model, sum(tokens)) > self._bound:
            self.drop()
            return None
        starts = _Starts()
        for row, (key, _, _) in enumerate(split):
            prefix, fresh = self._held.get(key), 0
            if row in missing:
                started = now(self.device)
                prefix = prefill(self.model, dict(missing[row].to(self.device)))
                starts.seconds += now(self.device) - started
                fresh = prefix.tokens
                if key is not None:
                    self._held[key] = prefix
            starts.prefixes.append(prefix)
            starts.fresh.append(fresh)
        return starts

    def _missing(self, split: list[Split], media: Sequence[Sequence[Any]]) -> dict[int, BatchFeature]:
        """The processor's inputs of the starts that are not held, by the first row that needs each."""
        missing, seen = {}, set(self._held)
        for row, ((key, text, _), items) in enumerate(zip(split, media, strict=True)):
            if not text or key in seen:
                continue
            missing[row] = process(self.processor, [text], [items])
            check_context(self.model, missing[row]["attention_mask"])
            if key is not None:
                seen.add(key)
                if prefix_bytes(self.model, missing[row]["input_ids"].shape[1]) > self._bound:
                    # Not tried again for each of its questions.
                    self._waiting.pop(key, None)
        return missing

    def _keep_for_the_next(self, split: list[Split]) -> None:
        left = self._waiting - Counter(key for key, _, _ in split)
        last = next((key for key, _, _ in reversed(split) if left[key]), None)
        self._held = {last: self._held[last]} if last in self._held else {}
