"""The shapes questions as files and documents: clips are made on first use in the user's cache, the same everywhere."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lmms_eval_vreason.paths import cache_dir
from lmms_eval_vreason.shapes.items import Item, make_item
from lmms_eval_vreason.shapes.render import write_mp4

# Increase it whenever an index gives another question or picture, so that old clips are never taken for new ones.
WORLD_VERSION = 1


def clip_path(split: str, index: int) -> Path:
    """The path of question ``index``'s clip, whether it exists or not."""
    return cache_dir() / "shapes" / f"v{WORLD_VERSION}" / f"{split}-{index:05d}.mp4"


def make_clips(items: Sequence[Item]) -> list[Path]:
    """Writes the clips that do not exist yet, with a progress bar; returns all paths."""
    paths = [clip_path(item.split, item.index) for item in items]
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
    items = [make_item(split, index) for index in range(count)]
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
