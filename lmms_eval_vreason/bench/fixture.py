"""What the end-to-end benchmark runs on: synthetic videos with several questions each, a task, a random checkpoint."""

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lmms_eval_vreason.bench.sizes import with_random_weights
from lmms_eval_vreason.shapes.architecture import Sizes, build_config, build_generation_config, build_processor
from lmms_eval_vreason.shapes.questions import ask
from lmms_eval_vreason.shapes.render import CELL, FRAME, render, write_mp4
from lmms_eval_vreason.shapes.world import MOMENTS, make_scene

TASK = "vreason_bench"
FRAMES = 32  # that the model sees of a video: lmms-eval's default
_SECONDS = 16  # of a video, at 8 frames a second
_TASK_FILES = Path(__file__).parent / "task"
_KINDS = ("colour", "shape", "count", "moves")


@dataclass(frozen=True)
class Fixture:
    """The benchmark's files: the same arguments give the same ones.

    Attributes:
        folder: Holds everything; ``folder / "task"`` is lmms-eval's ``--include_path``.
        videos, questions: Clips, and questions on each.
        asked_tokens: About how many video tokens a prompt shall have: :attr:`video_tokens` is the nearest number that
            square frames give.
    """

    folder: Path
    videos: int
    questions: int
    asked_tokens: int

    @property
    def side(self) -> int:
        """Pixels a side of a frame as the model sees it."""
        return CELL * max(1, round(math.sqrt(self.asked_tokens / (FRAMES // 2))))

    @property
    def video_tokens(self) -> int:
        """Video tokens of one prompt."""
        return (self.side // CELL) ** 2 * FRAMES // 2

    def write(self, shape: Sizes, device: str) -> "Fixture":
        """Writes the videos, the task and a checkpoint of this shape, whose weights are made on ``device``."""
        shutil.copytree(_TASK_FILES, self.folder / "task", ignore=shutil.ignore_patterns("__pycache__"))
        documents = []
        for index in tqdm(range(self.videos), desc="making videos", unit="video", leave=False):
            documents += self._video(self.folder / f"{index}.mp4", np.random.default_rng([0, index]))
        lines = "".join(json.dumps(document) + "\n" for document in documents)
        (self.folder / "task" / "documents.json").write_text(lines)
        _save_checkpoint(self.folder / "checkpoint", shape, device)
        return self

    def _video(self, path: Path, rng: np.random.Generator) -> list[dict[str, Any]]:
        """Writes one clip; returns its documents."""
        while True:
            scene = make_scene(rng, "move", "test")
            asked = [q for n in range(self.questions) if (q := ask(scene, _KINDS[n % len(_KINDS)], rng))]
            if len(asked) == self.questions:
                break
        scale = max(4, math.ceil(self.side / FRAME))
        pictures = render(scene, rng).repeat(scale, axis=1).repeat(scale, axis=2)
        write_mp4(pictures.repeat(_SECONDS // MOMENTS, axis=0), path)
        return [{"video": str(path), "prompt": question.prompt(), "answer": question.letter} for question in asked]


def _save_checkpoint(folder: Path, shape: Sizes, device: str) -> None:
    """A random checkpoint in bfloat16, the only dtype that the stock class loads.

    It never ends by itself: neither an end token nor any other special one can be the likeliest.
    """
    processor = build_processor()
    tokenizer = processor.tokenizer
    config = build_config(tokenizer, shape)
    model = with_random_weights(config, device=device, dtype=torch.bfloat16)
    # A logit of 0 is never the highest of a thousand random ones. Past the tokenizer's end there is no text to score.
    with torch.no_grad():
        rows = model.get_output_embeddings().weight
        rows[len(tokenizer) :] = 0
        rows[tokenizer.all_special_ids] = 0
    model.generation_config = build_generation_config(tokenizer)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    del model, rows
    if device.startswith("cuda"):
        torch.cuda.empty_cache()  # The runs need it, and this process goes on beside them.
