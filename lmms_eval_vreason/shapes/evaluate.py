"""How good and how sure a checkpoint is on held-out questions: ``python -m lmms_eval_vreason.shapes.evaluate``."""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
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
_OFF = VReason(policy="off")


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
        method: VReason = _OFF,
        batch_size: int = 64,
    ) -> pd.DataFrame:
        """Greedy answers to ``items``, one row each.

        Columns: kind, haze, text, valid (well-formed), right, tokens (generated, with the end token), entropy (their
        mean, nats), trace.

        Args:
            items: The questions.
            frames: What the model sees instead of the items' own pictures: clips read from files, or other clips.
            method: The base model's answers if left out.
            batch_size: Questions at once.
        """
        frames = frames if frames is not None else [sampled(item.pictures) for item in items]
        answers: dict[int, tuple[str, Trace]] = {}
        # Questions of one kind are about as long: batched together, few steps go to those that have finished.
        order = sorted(range(len(items)), key=lambda index: (items[index].question.kind, index))
        for start in tqdm(range(0, len(items), batch_size), desc="answering", leave=False):
            part = order[start : start + batch_size]
            inputs = prepare(self.processor, [items[index] for index in part], [frames[index] for index in part])
            inputs["position_ids"] = trained_positions(self.model.config, **inputs)
            inputs.update(max_new_tokens=160, do_sample=False)
            result = generate(self.model, method, **inputs)
            said = result.sequences[:, inputs["input_ids"].shape[1] :]
            texts = self.processor.batch_decode(said, skip_special_tokens=True)
            answers.update(zip(part, zip(texts, result.traces, strict=True), strict=True))
        return pd.DataFrame(_row(item, *answers[index]) for index, item in enumerate(items))


def _row(item: Item, text: str, trace: Trace) -> dict[str, Any]:
    said = _WELL_FORMED.fullmatch(text)
    graded = {"valid": said is not None, "right": said is not None and said[1] == item.question.letter}
    figures = {"tokens": len(trace.entropy), "entropy": float(trace.entropy.mean())}
    return {"kind": item.question.kind, "haze": item.haze, "text": text, **graded, **figures, "trace": trace}


def frames_from_files(items: Sequence[Item]) -> list[np.ndarray]:
    """What qwen-vl-utils reads from the items' mp4 files at 2 frames a second: ``(8, 84, 84, 3)`` uint8 each."""
    size = {"fps": 2.0, "min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS}
    videos = (fetch_video({"video": str(path), **size}) for path in make_clips(items))
    return [video.permute(0, 2, 3, 1).round().to(torch.uint8).numpy() for video in videos]


def report(checkpoint: str | None, count: int) -> dict[str, Any]:
    """Accuracy, entropy and length on ``count`` test questions from files, and accuracy on other clips.

    ``accuracy_with_another_video``: each question sees the clip of the next of its kind; kinds take turns.
    """
    reasoner, items = Reasoner.load(checkpoint), make_items("test", count)
    frames, turn = frames_from_files(items), len(KINDS)
    answers = reasoner.answer(items, frames)
    right = answers["right"]
    return {
        "accuracy": right.mean(),
        "standard_error": right.sem(),
        "by_kind": right.groupby(answers["kind"]).mean().to_dict(),
        "by_haze": right.groupby(answers["haze"].round(1)).mean().to_dict(),
        "format_valid": answers["valid"].mean(),
        "entropy": np.average(answers["entropy"], weights=answers["tokens"]),
        "tokens": answers["tokens"].describe().to_dict(),
        "accuracy_with_another_video": reasoner.answer(items, frames[turn:] + frames[:turn])["right"].mean(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--checkpoint", default=None, help="a folder; the packaged checkpoint if left out")
    parser.add_argument("--questions", type=int, default=900)
    args = parser.parse_args()
    print(json.dumps(report(args.checkpoint, args.questions), indent=2))


if __name__ == "__main__":
    main()
