"""Held-out accuracy of a shapes checkpoint by kind of question: ``python -m lmms_eval_vreason.shapes.evaluate``."""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from qwen_vl_utils import fetch_video
from tqdm import tqdm
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration
from transformers.video_utils import VideoMetadata

from lmms_eval_vreason.families.positions import trained_positions
from lmms_eval_vreason.shapes import checkpoint_dir
from lmms_eval_vreason.shapes.architecture import MAX_PIXELS, MIN_PIXELS
from lmms_eval_vreason.shapes.dataset import make_clips
from lmms_eval_vreason.shapes.items import Item, make_items
from lmms_eval_vreason.shapes.questions import KINDS
from lmms_eval_vreason.shapes.render import sampled

_WELL_FORMED = re.compile(r"<think>[^<]+</think><answer>([A-D])</answer>")
MAX_NEW_TOKENS = 128


@dataclass(frozen=True)
class Result:
    """What an evaluation found: all figures are shares of the questions, ``texts`` the raw outputs."""

    accuracy: float
    by_kind: dict[str, float]
    format_valid: float
    texts: list[str]
    right: list[bool]


def prepare(processor, items: Sequence[Item], frames: Sequence[np.ndarray], *, direct: bool = False):
    """The processor's inputs, left-padded, for items with given frames of ``(8, 84, 84, 3)`` at 2 a second."""
    texts = []
    for item in items:
        content = [{"type": "video"}, {"type": "text", "text": item.question.prompt(direct=direct)}]
        chat = [{"role": "user", "content": content}]
        texts.append(processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
    metadata = [VideoMetadata(total_num_frames=len(f), fps=2.0, frames_indices=list(range(len(f)))) for f in frames]
    return processor(
        text=texts,
        videos=[torch.from_numpy(f).permute(0, 3, 1, 2) for f in frames],
        video_metadata=metadata,
        do_sample_frames=False,
        padding=True,
        return_tensors="pt",
    )


def read_answer(text: str) -> str | None:
    """The letter of a well-formed output, else None."""
    found = _WELL_FORMED.fullmatch(text.strip())
    return found.group(1) if found else None


def evaluate(
    model,
    processor,
    items: Sequence[Item],
    *,
    frames: Sequence[np.ndarray] | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> Result:
    """Greedy answers of ``model`` to ``items``.

    Args:
        frames: what the model sees instead of the items' own pictures (clips read back from files, other clips).
        batch_size: questions at once.
    """
    frames = frames if frames is not None else [sampled(item.pictures) for item in items]
    texts: list[str] = []
    for start in tqdm(range(0, len(items), batch_size), desc="evaluating", disable=not progress):
        part = slice(start, start + batch_size)
        inputs = prepare(processor, items[part], frames[part])
        with torch.inference_mode():
            positions = trained_positions(model.config, **inputs)
            tokens = model.generate(**inputs, position_ids=positions, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        texts += processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    answers = [read_answer(text) for text in texts]
    right = [answer == item.question.letter for answer, item in zip(answers, items, strict=True)]
    by_kind = {
        kind: float(np.mean(found))
        for kind in KINDS
        if (found := [hit for hit, item in zip(right, items, strict=True) if item.question.kind == kind])
    }
    valid = float(np.mean([answer is not None for answer in answers]))
    return Result(float(np.mean(right)), by_kind, valid, texts, right)


def frames_from_files(items: Sequence[Item]) -> list[np.ndarray]:
    """What qwen-vl-utils reads from the items' mp4 files at 2 frames a second: ``(8, 84, 84, 3)`` uint8 each."""
    size = {"fps": 2.0, "min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS}
    videos = (fetch_video({"video": str(path), **size}) for path in make_clips(items))
    return [video.permute(0, 2, 3, 1).round().to(torch.uint8).numpy() for video in videos]


def _others(items: Sequence[Item], frames: list[np.ndarray]) -> list[np.ndarray]:
    """Each question's frames exchanged for those of the next question of its kind."""
    kinds = len(KINDS)
    return [frames[(index + kinds) % (len(items) // kinds * kinds)] for index in range(len(items))]


def report(checkpoint: str, count: int) -> dict:
    """Accuracy on ``count`` test questions from files, from pictures in memory, and with another question's video."""
    processor = AutoProcessor.from_pretrained(checkpoint)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    items = make_items("test", count)
    frames = frames_from_files(items)
    result = evaluate(model, processor, items, frames=frames)
    tokens = [len(ids) for ids in processor.tokenizer(result.texts)["input_ids"]]
    return {
        "questions": count,
        "accuracy": result.accuracy,
        "standard_error": float(np.sqrt(result.accuracy * (1 - result.accuracy) / (count - 1))),
        "by_kind": result.by_kind,
        "format_valid": result.format_valid,
        "tokens": {"mean": float(np.mean(tokens)), "least": min(tokens), "most": max(tokens)},
        "accuracy_from_memory": evaluate(model, processor, items).accuracy,
        "accuracy_with_another_video": evaluate(model, processor, items, frames=_others(items, frames)).accuracy,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--checkpoint", default=None, help="a folder; the packaged checkpoint if left out")
    parser.add_argument("--questions", type=int, default=900)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(json.dumps(report(args.checkpoint or str(checkpoint_dir()), args.questions), indent=2))


if __name__ == "__main__":
    main()
