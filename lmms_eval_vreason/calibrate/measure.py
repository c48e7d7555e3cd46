"""Samples → replays: the base model answers a batch, and every setting goes through those answers again.

Each replay becomes one JSON line, which also holds the base model's numbers from just before. So a run that was stopped
goes on from its lines.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from lmms_eval_vreason.adapter.model import VReasonModel
from lmms_eval_vreason.calibrate.replay import Prompts, Replayed, replay
from lmms_eval_vreason.journal.files import digest
from lmms_eval_vreason.media.frames import read_media
from lmms_eval_vreason.method.config import VReason
from lmms_eval_vreason.report.files import read_json_lines
from lmms_eval_vreason.run.generation import Call
from lmms_eval_vreason.run.inputs import check_context
from lmms_eval_vreason.run.records import sample_key
from lmms_eval_vreason.run.samples import Sample
from lmms_eval_vreason.run.stopwatch import now

_WARM_UP_TOKENS = 4


@dataclass(frozen=True)
class Sizes:
    """How many samples are replayed together, and how many tokens of an answer at most."""

    batch_size: int
    max_new_tokens: int


class AnsweredBatch:
    """Samples with the base model's answers.

    Attributes:
        answers: Each sample's new tokens.
    """

    def __init__(self, lm: VReasonModel, samples: Sequence[Sample], max_new_tokens: int) -> None:
        """``lm`` is loaded with ``policy=off``. Raises ValueError for a prompt that cannot be read, or is too long."""
        self.setup, self.samples, self.max_new_tokens = lm.setup, samples, max_new_tokens
        self.model, inputs = self.setup.model, []
        for sample in samples:
            if sample.error is not None:
                raise ValueError(f"{sample.task} doc {sample.doc_id}: {sample.error}") from sample.error
            processor = self.setup.processor
            text, media = processor.render(sample), read_media(sample.media, lm.options.video, processor.rule)
            inputs.append(processor.process([text], [media]).to(self.setup.device))
            check_context(self.model, inputs[-1]["attention_mask"])
        self._prompts = Prompts.of(self.model, inputs, self.setup.positions)
        self._base: list[Tensor] = []
        prompts, settings = self._arguments()
        result = self.setup.method.generate(self.model, **prompts, **settings)
        self.answers: list[list[int]] = result.new_tokens(prompts["input_ids"].shape[1])

    def warm_up(self, method: VReason) -> None:
        """A few tokens: a process' first steps under a setting are slow, and are not its cost."""
        self._replay(method, [answer[:_WARM_UP_TOKENS] for answer in self.answers], [])

    def compare(self, method: VReason) -> dict[str, Any]:
        """The base model and then ``method``, one replay each: numbers by sample and token, and seconds a step."""
        base, base_seconds = self._replay(self.setup.method, self.answers, self._base)
        own, seconds = self._replay(method, self.answers, self._base)
        updated = [trace.shift[trace.alpha != 0] for trace in own.traces]
        return {
            "entropy": own.entropy,
            "base_entropy": base.entropy,
            "kl": own.kl,
            "changed": own.changed,
            "exploiting": [(trace.ema < trace.peak).tolist() for trace in own.traces],
            "shift": [float(shift[-1]) if len(shift) else 0.0 for shift in updated],
            "seconds": seconds,
            "base_seconds": base_seconds,
        }

    def _arguments(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What ``generate`` gets: the prompts with a cache of their own, and the settings that a run would use."""
        prompts = self._prompts.arguments(self.model)
        settings = Call(self.setup, self.samples, prompts["input_ids"].shape[1]).arguments
        return prompts, {**settings, "max_new_tokens": min(settings["max_new_tokens"], self.max_new_tokens)}

    def _replay(self, method: VReason, answers: list[list[int]], base: list[Tensor]) -> tuple[Replayed, float]:
        prompts, settings = self._arguments()
        started = now(self.setup.device)
        replayed = replay(self.model, method, prompts, answers, base, **settings)
        seconds = now(self.setup.device) - started - replayed.traces[0].seconds_prefill
        return replayed, seconds / max(map(len, answers))


def measure(
    lm: VReasonModel, samples: Sequence[Sample], methods: Mapping[str, VReason], sizes: Sizes, path: Path
) -> list[dict[str, Any]]:
    """Every setting on every batch. Lines that ``path`` has already are taken from there, new ones added to it.

    Args:
        lm: Loaded with ``policy=off``.
        methods: Name → setting.

    Returns:
        For each setting and batch what :meth:`AnsweredBatch.compare` gives, with the ``setting``'s name.

    Raises:
        ValueError: A sample that cannot be read.
    """
    path.touch()
    known, lines, own = {line["key"]: line for line in read_json_lines(path, [])}, [], digest(dict(lm.identity))
    batches, warm = _batches(samples, sizes.batch_size), False
    with tqdm(total=len(batches) * len(methods), desc="replays") as progress, path.open("a", encoding="utf-8") as file:
        file.write("\n" if file.tell() else "")  # After half a line, of a run that was killed.
        for batch in batches:
            answered, of_batch = None, [*(sample_key(sample, own) for sample in batch), sizes.max_new_tokens]
            for name, method in methods.items():
                if (key := digest([of_batch, asdict(method)])) not in known:
                    answered = answered or AnsweredBatch(lm, batch, sizes.max_new_tokens)
                    for each in () if warm else (lm.setup.method, *methods.values()):
                        answered.warm_up(each)
                    warm = True
                    known[key] = {"key": key, "setting": name, **answered.compare(method)}
                    file.write(json.dumps(known[key]) + "\n")
                    file.flush()
                lines.append({**known[key], "setting": name})
                progress.update()
    return lines


def _batches(samples: Sequence[Sample], size: int) -> list[list[Sample]]:
    """Samples with the same generation settings, ``size`` of them or fewer."""
    ordered = sorted(samples, key=lambda sample: repr(sample.settings))
    groups = [list(group) for _, group in groupby(ordered, key=lambda sample: sample.settings)]
    return [group[start : start + size] for group in groups for start in range(0, len(group), size)]
