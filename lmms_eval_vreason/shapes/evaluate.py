"""Held-out accuracy of a shapes checkpoint by kind of question: ``python -m lmms_eval_vreason.shapes.evaluate``."""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from qwen_vl_utils import fetch_video
from tqdm import tqdm
from transformers import AutoProcessor, BatchFeature, Qwen2_5_VLForConditionalGeneration
from transformers.video_utils import VideoMetadata

from lmms_eval_vreason import Trace, VReason, generate
from lmms_eval_vreason.families.positions import trained_positions
from lmms_eval_vreason.shapes import checkpoint_dir
from lmms_eval_vreason.shapes.architecture import MAX_PIXELS, MIN_PIXELS
from lmms_eval_vreason.shapes.dataset import Item, make_clips, make_items
from lmms_eval_vreason.shapes.questions import KINDS
from lmms_eval_vreason.shapes.render import sampled

_WELL_FORMED = re.compile(r"<think>[^<]+</think><answer>([A-D])</answer>")
MAX_NEW_TOKENS = 160


@dataclass(frozen=True)
class Answers:
    """Answers to some items, in their order: the raw outputs, and the traces if a method was given."""

    items: Sequence[Item]
    texts: list[str]
    traces: list[Trace] = field(default_factory=list)

    @property
    def right(self) -> list[bool]:
        pairs = zip(self.texts, self.items, strict=True)
        return [read_answer(text) == item.question.letter for text, item in pairs]

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return float(np.mean(self.right))

    @property
    def by_kind(self) -> dict[str, float]:
        """Kind of question → accuracy, for the kinds that were asked."""
        kinds = [item.question.kind for item in self.items]
        return {
            str(kind): float(share) for kind, share in pd.Series(self.right).groupby(kinds, sort=False).mean().items()
        }

    @property
    def format_valid(self) -> float:
        """The share of outputs that are well-formed."""
        return float(np.mean([read_answer(text) is not None for text in self.texts]))


def read_answer(text: str) -> str | None:
    """The letter of a well-formed output, else None."""
    found = _WELL_FORMED.fullmatch(text.strip())
    return found.group(1) if found else None


def prepare(processor: Any, items: Sequence[Item], frames: Sequence[np.ndarray]) -> BatchFeature:
    """The processor's inputs, left-padded, for items with given frames of ``(8, 84, 84, 3)`` at 2 a second."""
    texts = []
    for item in items:
        content = [{"type": "video"}, {"type": "text", "text": item.question.prompt()}]
        chat = [{"role": "user", "content": content}]
        texts.append(processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
    metadata = [VideoMetadata(total_num_frames=len(f), fps=2.0, frames_indices=list(range(len(f)))) for f in frames]
    inputs: BatchFeature = processor(
        text=texts,
        videos=[torch.from_numpy(f).permute(0, 3, 1, 2) for f in frames],
        video_metadata=metadata,
        do_sample_frames=False,
        padding=True,
        return_tensors="pt",
    )
    return inputs


@dataclass(frozen=True)
class Reasoner:
    """A model with its processor."""

    model: Any
    processor: Any

    @classmethod
    def load(cls, checkpoint: str | Path | None = None) -> "Reasoner":
        """A checkpoint's, in float32; without a folder the packaged one's."""
        folder = checkpoint or checkpoint_dir()
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        return cls(model, AutoProcessor.from_pretrained(folder))

    def answer(
        self,
        items: Sequence[Item],
        frames: Sequence[np.ndarray] | None = None,
        *,
        method: VReason | None = None,
        batch_size: int = 64,
    ) -> Answers:
        """Greedy answers to ``items``.

        Args:
            items: The questions.
            frames: What the model sees instead of the items' own pictures: clips read from files, or other clips.
            method: None is the model's own ``generate``.
            batch_size: Questions at once.
        """
        frames = frames if frames is not None else [sampled(item.pictures) for item in items]
        texts, traces = dict[int, str](), dict[int, Trace]()
        # Questions of one kind are about as long: batched together, few steps go to those that have finished.
        order = sorted(range(len(items)), key=lambda index: (items[index].question.kind, index))
        for start in tqdm(range(0, len(items), batch_size), desc="answering", leave=False):
            part = order[start : start + batch_size]
            inputs = prepare(self.processor, [items[index] for index in part], [frames[index] for index in part])
            tokens, traced = self._generate(inputs, method)
            texts.update(zip(part, self.processor.batch_decode(tokens, skip_special_tokens=True), strict=True))
            traces.update(zip(part, traced, strict=bool(traced)))
        return Answers(items, [texts[index] for index in sorted(texts)], [traces[index] for index in sorted(traces)])

    def _generate(self, inputs: BatchFeature, method: VReason | None) -> tuple[torch.Tensor, list[Trace]]:
        """The generated tokens, (batch, new tokens), and the traces, which the plain model has none of."""
        options: dict[str, Any] = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False}
        options["position_ids"] = trained_positions(self.model.config, **inputs)
        prompt = inputs["input_ids"].shape[1]
        if method is None:
            with torch.inference_mode():
                return self.model.generate(**inputs, **options)[:, prompt:], []
        result = generate(self.model, method, **inputs, **options)
        return result.sequences[:, prompt:], result.traces


def frames_from_files(items: Sequence[Item]) -> list[np.ndarray]:
    """What qwen-vl-utils reads from the items' mp4 files at 2 frames a second: ``(8, 84, 84, 3)`` uint8 each."""
    size = {"fps": 2.0, "min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS}
    videos = (fetch_video({"video": str(path), **size}) for path in make_clips(items))
    return [video.permute(0, 2, 3, 1).round().to(torch.uint8).numpy() for video in videos]


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of ``values``."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def report(checkpoint: str | None, count: int) -> dict[str, Any]:
    """Accuracy on ``count`` test questions from files, from pictures in memory, and with another question's video."""
    reasoner, items = Reasoner.load(checkpoint), make_items("test", count)
    frames = frames_from_files(items)
    # Each question's frames exchanged for those of the next question of its kind: kinds take turns.
    whole = len(items) // len(KINDS) * len(KINDS)
    others = [frames[(index + len(KINDS)) % whole] for index in range(len(items))]
    answers = reasoner.answer(items, frames)
    tokens = pd.Series([len(ids) for ids in reasoner.processor.tokenizer(answers.texts)["input_ids"]])
    return {
        "questions": count,
        "accuracy": answers.accuracy,
        "standard_error": standard_error(answers.right),
        "by_kind": answers.by_kind,
        "format_valid": answers.format_valid,
        "tokens": {"mean": float(tokens.mean()), "least": int(tokens.min()), "most": int(tokens.max())},
        "accuracy_from_memory": reasoner.answer(items).accuracy,
        "accuracy_with_another_video": reasoner.answer(items, others).accuracy,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--checkpoint", default=None, help="a folder; the packaged checkpoint if left out")
    parser.add_argument("--questions", type=int, default=900)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(json.dumps(report(args.checkpoint, args.questions), indent=2))


if __name__ == "__main__":
    main()
