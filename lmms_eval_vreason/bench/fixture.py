"""What the end-to-end benchmark runs on: made videos with several questions each, a task, and a random checkpoint."""

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from lmms_eval_vreason.bench.sizes import Shape, with_random_weights
from lmms_eval_vreason.shapes.architecture import build_config, build_generation_config, build_processor
from lmms_eval_vreason.shapes.questions import Question, ask
from lmms_eval_vreason.shapes.render import CELL, FRAME, render, write_mp4
from lmms_eval_vreason.shapes.world import MOMENTS, make_scene

TASK = "vreason_bench"
FRAMES = 32  # that the model sees of a video, as lmms-eval's default
_SECONDS = 16  # of a video, at 8 frames a second
_TASK_FILES = Path(__file__).parent / "task"
_KINDS = ("colour", "shape", "count", "moves")
# The published vision tower, for the published text shapes; the small ones have build_config's two layers.
_VISION = {"vision_layers": 32, "vision_hidden_size": 1280, "vision_heads": 16}
_VISION_INTERMEDIATE, _VISION_FULL_ATTENTION = 3420, [7, 15, 23, 31]


@dataclass(frozen=True)
class Fixture:
    """Where it all lies.

    Attributes:
        folder: Of everything; lmms-eval's ``--include_path`` is ``folder / "task"``.
        side: Pixels a side of a frame as the model sees it.
        video_tokens: Of one prompt.
        samples: Videos times questions.
    """

    folder: Path
    side: int
    video_tokens: int
    samples: int

    @property
    def task(self) -> Path:
        return self.folder / "task"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def pixels(self) -> int:
        return self.side**2


def build(
    folder: Path, *, shape: Shape, vision: bool, videos: int, questions: int, video_tokens: int, device: str
) -> Fixture:
    """Writes a fixture: the same arguments give the same files.

    Args:
        shape: The text decoder's.
        vision: Whether it has the published models' vision tower, or one of two small layers.
        videos, questions: Clips, and questions on each.
        video_tokens: About how many a prompt has; the next square number of cells a frame decides.
        device: Where the weights are made.
    """
    side = CELL * max(1, round(math.sqrt(video_tokens / (FRAMES // 2))))
    fixture = Fixture(folder, side, (side // CELL) ** 2 * FRAMES // 2, videos * questions)
    shutil.copytree(_TASK_FILES, fixture.task, ignore=shutil.ignore_patterns("__pycache__"))
    documents = []
    for index in tqdm(range(videos), desc="making videos", unit="video", leave=False):
        documents += _video(folder / f"{index}.mp4", np.random.default_rng([0, index]), questions, side)
    (fixture.task / "documents.json").write_text("".join(json.dumps(document) + "\n" for document in documents))
    save_checkpoint(fixture.checkpoint, shape, vision=vision, device=device)
    return fixture


def _video(path: Path, rng: np.random.Generator, questions: int, side: int) -> list[dict]:
    """Writes one clip and gives its documents."""
    asked: list[Question] = []
    while not asked:
        scene = make_scene(rng, "move", "test")
        asked = [q for n in range(questions) if (q := ask(scene, _KINDS[n % len(_KINDS)], rng))]
        asked = asked if len(asked) == questions else []
    scale = max(4, math.ceil(side / FRAME))
    pictures = render(scene, rng).repeat(scale, axis=1).repeat(scale, axis=2)
    write_mp4(pictures.repeat(_SECONDS // MOMENTS, axis=0), path)
    return [{"video": str(path), "prompt": question.prompt(), "answer": question.letter} for question in asked]


def save_checkpoint(folder: Path, shape: Shape, *, vision: bool, device: str) -> None:
    """A random checkpoint in bfloat16, which the stock class loads anything in.

    It never ends by itself: no end token, and no other special one, can be the likeliest.
    """
    processor = build_processor()
    tokenizer = processor.tokenizer
    if shape.vocabulary < len(tokenizer):
        raise ValueError(f"a vocabulary of {shape.vocabulary} is too small for the tokenizer's {len(tokenizer)} tokens")
    config = build_config(
        tokenizer,
        layers=shape.layers,
        hidden_size=shape.hidden_size,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        intermediate_size=shape.intermediate_size,
        tie_word_embeddings=shape.tied,
        **(_VISION if vision else {}),
    )
    config.text_config.vocab_size = shape.vocabulary
    if vision:
        config.vision_config.intermediate_size = _VISION_INTERMEDIATE
        config.vision_config.fullatt_block_indexes = _VISION_FULL_ATTENTION
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
        torch.cuda.empty_cache()  # the runs need it, and this process lives on beside them
