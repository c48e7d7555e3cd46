"""The shapes world: coloured shapes on a board of three by three cells, over four moments of one clip."""

import hashlib
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lmms_eval_vreason.shapes.vocabulary import COLOURS, COLUMNS, DIRECTIONS, ROWS, SHAPES

# Of one thing: its (row, column) at each moment, None while it is out of sight.
Cells = tuple[tuple[int, int] | None, ...]
MOMENTS = 4
SIDE = 3  # cells a side

# (row, column) step of each direction
_STEPS = dict(zip(DIRECTIONS, ((0, -1), (0, 1), (-1, 0), (1, 0)), strict=True))
# Which sixteenths of all scenes belong to a split: a scene is in one split only, whatever its seed.
SPLITS = {"test": range(0, 2), "validation": range(2, 4), "train": range(4, 16)}
RECIPES = ("move", "race", "order", "vanish")
FEWEST, MOST = 3, 6  # things in one scene
_MOST = {"race": 3, "order": MOMENTS}  # where fewer


@dataclass(frozen=True)
class Thing:
    """One object, and where it is at each moment."""

    colour: str
    shape: str
    cells: Cells

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def appears(self) -> int:
        """The first moment at which it is seen, counted from 0."""
        return next(moment for moment, cell in enumerate(self.cells) if cell is not None)

    @property
    def disappears(self) -> bool:
        return self.cells[-1] is None

    @property
    def seen(self) -> list[tuple[int, int]]:
        """Its cells from its first moment to its last."""
        return [cell for cell in self.cells if cell is not None]

    @property
    def hops(self) -> int:
        """How often it changes its cell."""
        return sum(a != b for a, b in pairwise(self.seen))

    @property
    def direction(self) -> str | None:
        """The one direction of all its hops; None if it stays or turns."""
        steps = {(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(self.seen) if a != b}
        return next((name for name, step in _STEPS.items() if steps == {step}), None)


@dataclass(frozen=True)
class Scene:
    """What one clip shows. Things stand in the order of :data:`COLOURS`, and no two share a colour."""

    things: tuple[Thing, ...]

    def split(self) -> str:
        """The split that owns this scene, from a digest of its content."""
        sixteenth = hashlib.sha256(repr(self.things).encode()).digest()[0] % 16
        return next(name for name, owned in SPLITS.items() if sixteenth in owned)


def cell_name(cell: tuple[int, int]) -> str:
    """``(0, 2)`` → ``"top right"``."""
    return f"{ROWS[cell[0]]} {COLUMNS[cell[1]]}"


def _walk(rng: np.random.Generator, hops: int) -> Cells:
    """A path with ``hops`` hops between the moments: one direction for up to two hops, back and forth for three."""
    direction = np.array(_STEPS[DIRECTIONS[rng.integers(4)]])
    start = rng.integers(SIDE, size=2)
    axis = int(np.flatnonzero(direction)[0])
    reach = min(hops, SIDE - 1)
    offset = rng.integers(SIDE - reach)  # a start that leaves room for the whole way
    start[axis] = offset if direction[axis] > 0 else SIDE - 1 - offset
    when = set(rng.choice(MOMENTS - 1, size=hops, replace=False).tolist())
    cells, done = [start], 0
    for gap in range(MOMENTS - 1):
        done += gap in when
        cells.append(cells[-1] + (gap in when) * (direction if done < SIDE else -direction))
    return tuple((int(row), int(column)) for row, column in cells)


def _stand(rng: np.random.Generator, first: int = 0, last: int = MOMENTS) -> Cells:
    """Stays in one cell from moment ``first`` up to, not including, ``last``."""
    row, column = rng.integers(SIDE, size=2).tolist()
    return tuple((row, column) if first <= moment < last else None for moment in range(MOMENTS))


def _paths(rng: np.random.Generator, recipe: str, count: int) -> list[Cells]:
    """The cells of ``count`` things under a recipe."""
    if recipe == "order":
        starts = rng.choice(MOMENTS, size=count, replace=False)
        return [_stand(rng, first=int(start)) for start in starts]
    if recipe == "race":
        fewer, more = sorted(rng.choice((1, 2, 3), size=2, replace=False).tolist())
        chosen = [_walk(rng, fewer), _walk(rng, more)]
    else:
        moves = recipe == "move"
        chosen = [_walk(rng, int(rng.integers(1, 3))) if moves else _stand(rng, last=int(rng.integers(1, MOMENTS)))]
        if count > 2 and rng.random() < 0.3:
            chosen.append(_stand(rng, first=int(rng.integers(1, MOMENTS))))
    return chosen + [_stand(rng) for _ in range(count - len(chosen))]


def _collides(paths: list[Cells]) -> bool:
    return any(
        len(seen) != len(set(seen))
        for seen in ([path[moment] for path in paths if path[moment] is not None] for moment in range(MOMENTS))
    )


def make_scene(rng: np.random.Generator, recipe: str, split: str) -> Scene:
    """Draws a scene of ``split`` after ``recipe``.

    ``move``: one thing moves. ``race``: two move, one more often. ``order``: all appear at different moments.
    ``vanish``: one disappears. Three to six things each (``race`` three, ``order`` up to four).

    Raises:
        ValueError: The recipe or the split is unknown.
    """
    if recipe not in RECIPES or split not in SPLITS:
        raise ValueError(f"recipe={recipe!r}, split={split!r}: known are {RECIPES} and {tuple(SPLITS)}")
    while True:
        count = int(rng.integers(FEWEST, _MOST.get(recipe, MOST) + 1))
        paths = _paths(rng, recipe, count)
        if _collides(paths):
            continue
        colours = sorted(rng.choice(len(COLOURS), size=count, replace=False).tolist())
        shapes = rng.integers(len(SHAPES), size=count).tolist()
        order = rng.permutation(count)
        things = (
            Thing(COLOURS[colour], SHAPES[shape], paths[which])
            for colour, shape, which in zip(colours, shapes, order, strict=True)
        )
        scene = Scene(tuple(things))
        if scene.split() == split:
            return scene
