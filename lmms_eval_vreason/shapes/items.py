"""Held-out questions by number: the same scene, question and pictures for the same split and index, everywhere."""

from dataclasses import dataclass

import numpy as np

from lmms_eval_vreason.shapes.questions import KINDS, SceneQuestion, ask
from lmms_eval_vreason.shapes.render import render
from lmms_eval_vreason.shapes.world import SPLITS, Scene, make_scene


@dataclass(frozen=True)
class Item:
    """One held-out question: its scene, the question, and the pictures of the clip ``(4, 84, 84, 3)``."""

    split: str
    index: int
    scene: Scene
    question: SceneQuestion
    pictures: np.ndarray


def make_item(split: str, index: int) -> Item:
    """SceneQuestion ``index`` of a split: the same on every machine; kinds take turns."""
    rng = np.random.default_rng([list(SPLITS).index(split), index])
    kind = list(KINDS)[index % len(KINDS)]
    recipes = KINDS[kind][1]
    question = None
    while question is None:
        scene = make_scene(rng, recipes[rng.integers(len(recipes))], split)
        question = ask(scene, kind, rng)
    return Item(split, index, scene, question, render(scene, rng))


def make_items(split: str, count: int) -> list[Item]:
    """The first ``count`` questions of a split."""
    return [make_item(split, index) for index in range(count)]
