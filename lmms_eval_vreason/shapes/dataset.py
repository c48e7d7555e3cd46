"""Held-out questions by number, their clips and lmms-eval's documents.

The same split and index give the same scene, question and pictures everywhere. Clips are made on first use in the
user's cache.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lmms_eval_vreason.paths import cache_dir
from lmms_eval_vreason.shapes.questions import KINDS, SceneQuestion, ask
from lmms_eval_vreason.shapes.render import render, write_mp4
from lmms_eval_vreason.shapes.world import SPLITS, Scene, make_scene

# Increase it whenever an index gives another question or picture, so that old clips are never taken for new ones.
WORLD_VERSION = 2
HAZE = (0.6, 1.0)  # the least and the greatest haze of held-out clips


@dataclass(frozen=True)
class Item:
    """One held-out question: its scene, the question, its clip's haze and its pictures ``(4, 84, 84, 3)``."""

    split: str
    index: int
    scene: Scene
    question: SceneQuestion
    haze: float
    pictures: np.ndarray


def make_item(split: str, index: int, haze: float | None = None) -> Item:
    """Question ``index`` of a split: the same on every machine; kinds take turns.

    Args:
        haze: Of its clip; drawn if left out.
    """
    rng = np.random.default_rng([list(SPLITS).index(split), index])
    kind = list(KINDS)[index % len(KINDS)]
    recipes = KINDS[kind][1]
    question = None
    while question is None:
        scene = make_scene(rng, recipes[rng.integers(len(recipes))], split)
        question = ask(scene, kind, rng)
    drawn = float(rng.uniform(*HAZE))
    haze = drawn if haze is None else haze
    return Item(split, index, scene, question, haze, render(scene, rng, haze))


def make_items(split: str, count: int, haze: float | None = None) -> list[Item]:
    """The first ``count`` questions of a split."""
    return [make_item(split, index, haze) for index in range(count)]


def clip_path(item: Item) -> Path:
    """The path of a question's clip, whether it exists or not."""
    return cache_dir() / "shapes" / f"v{WORLD_VERSION}" / f"{item.split}-{item.index:05d}-haze{item.haze:.3f}.mp4"


def make_clips(items: Sequence[Item]) -> list[Path]:
    """Writes the clips that do not exist yet, with a progress bar; returns all paths."""
    paths = [clip_path(item) for item in items]
    missing = [(item, path) for item, path in zip(items, paths, strict=True) if not path.exists()]
    for item, path in tqdm(missing, desc="making shapes clips", disable=not missing):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_mp4(item.pictures, path)
    return paths


def documents(split: str, count: int) -> list[dict[str, Any]]:
    """The first ``count`` questions of a split as plain records, with their clips on disk.

    Each has ``question_id``, ``kind``, ``question``, ``options``, ``answer`` (a letter) and ``video`` (a path relative
    to the user's cache folder).
    """
    items = make_items(split, count)
    return [
        {
            "question_id": f"{split}-{item.index}",
            "kind": item.question.kind,
            "question": item.question.text,
            "options": list(item.question.options),
            "answer": item.question.letter,
            "video": os.path.relpath(path, cache_dir()),
        }
        for item, path in zip(items, make_clips(items), strict=True)
    ]
