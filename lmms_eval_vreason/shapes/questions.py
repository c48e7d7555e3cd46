"""Questions on a scene: four options in random order, and a chain of thought that leads to the answer.

The thinking is really random given the clip: in what order things are named, in which words, what is said of each. A
model that has learnt it has to be unsure of its next word.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np

from lmms_eval_vreason.shapes.vocabulary import COLOURS, DIRECTIONS, LETTERS, NUMBERS, SHAPES
from lmms_eval_vreason.shapes.world import FEWEST, MOST, RECIPES, Scene, Thing, cell_name

THINK_INSTRUCTION = "Think inside <think> </think>, answer inside <answer> </answer>."
DIRECT_INSTRUCTION = "Give only the letter."


def prompt_text(text: str, options: Sequence[str], *, direct: bool) -> str:
    """The user's text after the video: how to answer, the question, and four lettered options."""
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True)]
    return "\n".join([DIRECT_INSTRUCTION if direct else THINK_INSTRUCTION, text, *lines])


@dataclass(frozen=True)
class SceneQuestion:
    """One question: its kind, text, four options, the right option's index, the reasons for it, and how to conclude."""

    kind: str
    text: str
    options: tuple[str, ...]
    answer: int
    reasons: str
    conclusion: str

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
        conclusion = f"{self.conclusion} {self.options[self.answer]} {self.letter}"
        return f"<think>{self.reasons} {conclusion}</think><answer>{self.letter}</answer>"


def say(rng: np.random.Generator, *ways: str) -> str:
    """One of ``ways``; the n-th is 1/n times as likely as the first."""
    weights = 1 / np.arange(1, len(ways) + 1)
    return ways[rng.choice(len(ways), p=weights / weights.sum())]


Say = Callable[..., str]  # :func:`say` with its random generator
# A note of a thing: the thing, which of the notes it is (from 0), and how to choose words.
Note = Callable[[Thing, int, Say], str]


@dataclass(frozen=True)
class _Draft:
    """A question before its options are drawn. Wrong options come from ``near`` first, then from ``far``."""

    text: str
    answer: str
    near: list[str]
    far: list[str]
    notes: Note


_Asks = Callable[[Scene, np.random.Generator], _Draft | None]


def _colour(scene: Scene, rng: np.random.Generator) -> _Draft | None:
    shapes = [thing.shape for thing in scene.things]
    single = [thing for thing in scene.things if shapes.count(thing.shape) == 1]
    if not single:
        return None
    thing = single[rng.integers(len(single))]
    near = [other.colour for other in scene.things if other is not thing]
    return _Draft(f"What colour is the {thing.shape}?", thing.colour, near, list(COLOURS), _named)


def _shape(scene: Scene, rng: np.random.Generator) -> _Draft | None:
    thing = scene.things[rng.integers(len(scene.things))]
    near = [other.shape for other in scene.things if other.shape != thing.shape]
    return _Draft(f"What shape is the {thing.colour} object?", thing.shape, near, list(SHAPES), _is_a)


def _count(scene: Scene, rng: np.random.Generator) -> _Draft | None:
    numbers = list(NUMBERS[FEWEST - 1 : MOST])
    return _Draft("How many objects are in the whole clip?", NUMBERS[len(scene.things) - 1], [], numbers, _counted)


def _named(thing: Thing, place: int, say: Say) -> str:
    return f"{say('this is', 'that is', 'there is')} the {thing.name}"


def _is_a(thing: Thing, place: int, say: Say) -> str:
    return f"the {thing.colour} {say('object', 'one')} {say('is', 'looks')} a {thing.shape}"


def _counted(thing: Thing, place: int, say: Say) -> str:
    return f"{NUMBERS[place]} {say('is', 'for')} the {thing.name}"


def _from_to(thing: Thing, place: int, say: Say) -> str:
    if not thing.hops:
        return f"the {thing.name} {say('stays', 'is still')} {say('at', 'in')} {cell_name(thing.seen[0])}"
    verb = say("goes", "moves", "comes")
    return f"the {thing.name} {verb} from {cell_name(thing.seen[0])} to {cell_name(thing.seen[-1])}"


def _path(thing: Thing, place: int, say: Say) -> str:
    """Every cell, whether the thing moved there, and how many moves there were."""
    steps = (f"{cell_name(b)} {'stays' if a == b else say('moves', 'hops')}" for a, b in pairwise(thing.seen))
    return f"the {thing.name} {cell_name(thing.seen[0])} {' '.join(steps)} {('none', *NUMBERS)[thing.hops]}"


def _moment(thing: Thing, place: int, say: Say) -> str:
    return f"the {thing.name} {say('appears', 'comes', 'is new')} at {NUMBERS[thing.appears]}"


def _fate(thing: Thing, place: int, say: Say) -> str:
    return f"the {thing.name} {say('is gone', 'goes') if thing.disappears else say('stays', 'is still there')}"


def _survey(things: Sequence[Thing], say: Say) -> str:
    """What there is, thing by thing; one in four is named without its place."""
    text = say("I see", "There is", "Look, there is", "Let me see:")
    for place, thing in enumerate(things):
        where = f" {say('at', 'in', 'on')} {say('the ', '')}{cell_name(thing.seen[0])}"
        text += say(",", " and", ", then", " with") if place else ""
        text += f" {say('a', 'the', 'this')} {thing.name}{say(where, where, '')}"
    return f"{text}."


def _direction(scene: Scene, rng: np.random.Generator) -> _Draft | None:
    movers = [(thing, way) for thing in scene.things if (way := thing.direction)]
    if not movers:
        return None
    thing, way = movers[rng.integers(len(movers))]
    text = f"Which way does the {thing.colour} object move?"
    return _Draft(text, way, [], list(DIRECTIONS), _from_to)


def _which(happens: str, notes: Note, chosen: Callable[[Scene], list[Thing]]) -> _Asks:
    """Asks for the colour of the one thing that is ``chosen``; of a scene that has not exactly one, nothing."""

    def asks(scene: Scene, rng: np.random.Generator) -> _Draft | None:
        things = chosen(scene)
        if len(things) != 1:
            return None
        near = [thing.colour for thing in scene.things if thing is not things[0]]
        return _Draft(f"What colour is the object that {happens}?", things[0].colour, near, list(COLOURS), notes)

    return asks


def _extreme(value: Callable[[Thing], int], pick: Callable[[list[int]], int]) -> Callable[[Scene], list[Thing]]:
    """The things whose ``value`` is the one that ``pick`` takes of all."""
    return lambda scene: [thing for thing in scene.things if value(thing) == pick([*map(value, scene.things)])]


# kind: (how it is asked, the recipes of the scenes that suit it)
KINDS: dict[str, tuple[_Asks, tuple[str, ...]]] = {
    "colour": (_colour, RECIPES),
    "shape": (_shape, RECIPES),
    "count": (_count, ("move", "vanish")),
    "direction": (_direction, ("move",)),
    "moves": (_which("moves", _from_to, lambda scene: [thing for thing in scene.things if thing.hops]), ("move",)),
    "more": (_which("moves more times", _path, _extreme(lambda thing: thing.hops, max)), ("race",)),
    "first": (_which("appears first", _moment, _extreme(lambda thing: thing.appears, min)), ("order",)),
    "last": (_which("appears last", _moment, _extreme(lambda thing: thing.appears, max)), ("order",)),
    "disappears": (_which("disappears", _fate, lambda scene: [t for t in scene.things if t.disappears]), ("vanish",)),
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
    words: Say = partial(say, rng)
    first, second = (rng.permutation(len(scene.things)) for _ in range(2))
    notes = [draft.notes(scene.things[index], place, words) for place, index in enumerate(second)]
    reasons = f"{_survey([scene.things[index] for index in first], words)} "
    reasons += f"{words('Now', 'Then', 'So', 'After that')} {words(', ', ' and ').join(notes)}."
    conclusion = words("So it is", "It is", "The answer is", "I think it is")
    return SceneQuestion(kind, draft.text, tuple(options), options.index(draft.answer), reasons, conclusion)
