"""Questions on a scene: four options in random order, and the short chain of thought that leads to the answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np

from lmms_eval_vreason.shapes.vocabulary import COLOURS, DIRECTIONS, LETTERS, NUMBERS, SHAPES
from lmms_eval_vreason.shapes.world import Scene, Thing, cell_name

T = TypeVar("T")

OPENINGS = ("I see", "Look:", "There are")
THINK_INSTRUCTION = "Think inside <think> </think>, answer inside <answer> </answer>."
DIRECT_INSTRUCTION = "Give only the letter."


def prompt_text(text: str, options: Sequence[str], *, direct: bool) -> str:
    """The user's text after the video: how to answer, the question, and four lettered options."""
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True)]
    return "\n".join([DIRECT_INSTRUCTION if direct else THINK_INSTRUCTION, text, *lines])


@dataclass(frozen=True)
class SceneQuestion:
    """One question: its kind, text, four options, the right option's index, and the reasons for it."""

    kind: str
    text: str
    options: tuple[str, ...]
    answer: int
    reasons: str

    @property
    def letter(self) -> str:
        return LETTERS[self.answer]

    def prompt(self, *, direct: bool = False) -> str:
        """See :func:`prompt_text`."""
        return prompt_text(self.text, self.options, direct=direct)

    def response(self, *, direct: bool = False) -> str:
        """What the model should say."""
        if direct:
            return self.letter
        conclusion = f"So it is {self.options[self.answer]} {self.letter}"
        return f"<think>{self.reasons} {conclusion}</think><answer>{self.letter}</answer>"


@dataclass(frozen=True)
class _Draft:
    """A question before its options are drawn. Wrong options come from ``near`` first, then from ``far``."""

    text: str
    answer: str
    near: list[str]
    far: list[str]
    notes: Callable[[Thing], str] = lambda thing: thing.name


def _pick(rng: np.random.Generator, things: Sequence[T]) -> T | None:
    return things[int(rng.integers(len(things)))] if things else None


def _colour(scene: Scene, rng: np.random.Generator) -> _Draft | None:
    shapes = [thing.shape for thing in scene.things]
    thing = _pick(rng, [thing for thing in scene.things if shapes.count(thing.shape) == 1])
    if thing is None:
        return None
    near = [other.colour for other in scene.things if other is not thing]
    return _Draft(f"What colour is the {thing.shape}?", thing.colour, near, list(COLOURS))


def _shape(scene: Scene, rng: np.random.Generator) -> _Draft | None:
    thing = scene.things[rng.integers(len(scene.things))]
    near = [other.shape for other in scene.things if other.shape != thing.shape]
    return _Draft(f"What shape is the {thing.colour} object?", thing.shape, near, list(SHAPES))


def _count(scene: Scene, rng: np.random.Generator) -> _Draft | None:
    numbers = list(NUMBERS[1:5])
    return _Draft("How many objects are in the whole clip?", NUMBERS[len(scene.things) - 1], [], numbers)


def _from_to(thing: Thing) -> str:
    return f"{thing.name} from {cell_name(thing.seen[0])} to {cell_name(thing.seen[-1])}"


def _path(thing: Thing) -> str:
    """Every cell, whether the thing moved there, and how many moves there were."""
    steps = (f"{cell_name(b)} {'stays' if a == b else 'moves'}" for a, b in pairwise(thing.seen))
    return f"{thing.name} {cell_name(thing.seen[0])} {' '.join(steps)} {('none', *NUMBERS)[thing.hops]}"


def _moment(thing: Thing) -> str:
    return f"{thing.name} at {NUMBERS[thing.appears]}"


def _fate(thing: Thing) -> str:
    return f"{thing.name} {'gone' if thing.disappears else 'stays'}"


# Ways to take a note of a thing, and whether every thing of a scene can be noted that way.
NOTES: tuple[tuple[Callable[[Thing], str], Callable[[Scene], bool]], ...] = (
    (_from_to, lambda scene: True),
    (_path, lambda scene: all(None not in thing.cells for thing in scene.things)),
    (_moment, lambda scene: True),
    (_fate, lambda scene: True),
)


def _direction(scene: Scene, rng: np.random.Generator) -> _Draft | None:
    found = _pick(rng, [(thing, way) for thing in scene.things if (way := thing.direction)])
    if found is None:
        return None
    thing, way = found
    text = f"Which way does the {thing.colour} object move?"
    return _Draft(text, way, [], list(DIRECTIONS), lambda other: _from_to(other) if other is thing else "")


def _which(scene: Scene, happens: str, things: list[Thing], notes: Callable[[Thing], str]) -> _Draft | None:
    """A question whose answer is the one thing in ``things``; None if there isn't exactly one."""
    if len(things) != 1:
        return None
    near = [thing.colour for thing in scene.things if thing is not things[0]]
    return _Draft(f"What colour is the object that {happens}?", things[0].colour, near, list(COLOURS), notes)


def _moves(scene: Scene, rng: np.random.Generator) -> _Draft | None:
    movers = [thing for thing in scene.things if thing.hops]
    return _which(scene, "moves", movers, _from_to)


def _more(scene: Scene, rng: np.random.Generator) -> _Draft | None:
    if sum(thing.hops > 0 for thing in scene.things) < 2 or any(None in thing.cells for thing in scene.things):
        return None
    most = max(thing.hops for thing in scene.things)
    best = [thing for thing in scene.things if thing.hops == most]
    return _which(scene, "moves more times", best, _path)


def _appears(scene: Scene, rng: np.random.Generator, which: str) -> _Draft | None:
    moments = [thing.appears for thing in scene.things]
    if len(set(moments)) != len(moments):
        return None
    wanted = min(moments) if which == "first" else max(moments)
    chosen = [thing for thing in scene.things if thing.appears == wanted]
    return _which(scene, f"appears {which}", chosen, _moment)


def _disappears(scene: Scene, rng: np.random.Generator) -> _Draft | None:
    gone = [thing for thing in scene.things if thing.disappears]
    return _which(scene, "disappears", gone, _fate)


# kind: (how it is asked, the recipes of the scenes that suit it)
KINDS: dict[str, tuple[Callable[[Scene, np.random.Generator], _Draft | None], tuple[str, ...]]] = {
    "colour": (_colour, ("move", "race", "order", "vanish")),
    "shape": (_shape, ("move", "race", "order", "vanish")),
    "count": (_count, ("move", "vanish")),
    "direction": (_direction, ("move",)),
    "moves": (_moves, ("move",)),
    "more": (_more, ("race",)),
    "first": (lambda scene, rng: _appears(scene, rng, "first"), ("order",)),
    "last": (lambda scene, rng: _appears(scene, rng, "last"), ("order",)),
    "disappears": (_disappears, ("vanish",)),
}


def ask(scene: Scene, kind: str, rng: np.random.Generator) -> SceneQuestion | None:
    """A question of ``kind`` on ``scene``, or None if the scene has no single answer to it.

    Wrong options come from the same clip first. The four options stand in random order.

    Raises:
        ValueError: The kind is unknown.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: known are {', '.join(KINDS)}")
    draft = KINDS[kind][0](scene, rng)
    if draft is None:
        return None
    near = list(dict.fromkeys(draft.near))
    far = [option for option in draft.far if option != draft.answer and option not in near]
    wrong = [*rng.permutation(near).tolist(), *rng.permutation(far).tolist()][: len(LETTERS) - 1]
    options = rng.permutation([draft.answer, *wrong]).tolist()
    notes = [note for note in map(draft.notes, scene.things) if note]
    reasons = f"{OPENINGS[rng.integers(len(OPENINGS))]} {', '.join(notes)}."
    return SceneQuestion(kind, draft.text, tuple(options), options.index(draft.answer), reasons)
