"""From a scene to pixels, and from pixels to an mp4 file."""

from functools import cache
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

from lmms_eval_vreason.shapes.world import MOMENTS, SIDE, Scene

CELL = 28  # pixels a side: what one video token covers
FRAME = SIDE * CELL
FPS = 8
FRAMES_PER_MOMENT = 8
SAMPLED_PER_MOMENT = 2  # of which a reader at 2 frames a second sees as many

_RGB = {
    "red": (230, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 80, 240),
    "yellow": (240, 220, 40),
    "purple": (190, 50, 210),
    "cyan": (40, 220, 230),
    "white": (250, 250, 250),
}
_DARKEST, _DAWN, _SLOPE = 16, 18, 7  # background grey of the first moment, its rise a moment, its rise a cell
_SUPERSAMPLE = 4
# What haze 1 does at most: a thing's share of another colour, its transparency, noise in grey levels, blinds a moment.
_TINGE, _FADE, _NOISE, _BLINDS = 0.45, 0.55, 60.0, 3
_GRAIN = 4  # pixels a side of one grain of noise: H.264 would smooth finer ones away


# What a shape is drawn of, one part over the other: how, its corners in shares of the side, and whether it fills.
_PARTS: dict[str, tuple[tuple[str, tuple[float, ...], bool], ...]] = {
    "circle": (("ellipse", (0, 0, 1, 1), True),),
    "square": (("rectangle", (0, 0, 1, 1), True),),
    "triangle": (("polygon", (0.5, 0, 1, 1, 0, 1), True),),
    "cross": (("rectangle", (0.34, 0, 0.66, 1), True), ("rectangle", (0, 0.34, 1, 0.66), True)),
    "ring": (("ellipse", (0, 0, 1, 1), True), ("ellipse", (0.27, 0.27, 0.73, 0.73), False)),
}


@cache
def _stencil(shape: str, size: int) -> np.ndarray:
    """How much of each pixel a shape covers: ``(size, size)`` floats from 0 to 1."""
    side = size * _SUPERSAMPLE
    image = Image.new("L", (side, side))
    draw = ImageDraw.Draw(image)
    for kind, corners, fills in _PARTS[shape]:
        getattr(draw, kind)([min(corner * side, side - 1) for corner in corners], fill=255 * fills)
    return np.asarray(image.resize((size, size), Image.Resampling.BOX), dtype=np.float32) / 255


@cache
def _background(moment: int) -> np.ndarray:
    """The board of one moment, ``(84, 84, 3)``: the day breaks, and red and blue rise a little to the right and below.

    Light tells the moment and tint the cell: cues in the picture for what a tiny model can't read off positions.
    """
    column, row = np.meshgrid(np.arange(FRAME) / CELL, np.arange(FRAME) / CELL)
    grey = _DARKEST + _DAWN * moment
    return np.stack([grey + _SLOPE * column, np.full_like(row, grey), grey + _SLOPE * row], axis=-1).astype(np.float32)


def render(scene: Scene, rng: np.random.Generator, haze: float = 0.0) -> np.ndarray:
    """One picture a moment, ``(4, 84, 84, 3)`` uint8; sizes and places within the cells vary a little.

    Args:
        haze: 0 is a clear clip. Up to 1, things take on other colours and fade, noise rises, and blinds hide places.
    """
    frames = np.stack([_background(moment) for moment in range(MOMENTS)])
    for thing in scene.things:
        size = int(rng.integers(20, 25))
        stencil = _stencil(thing.shape, size)[..., None]
        down, right = rng.integers(1, CELL - size, size=2)
        colour = np.array(_RGB[thing.colour], dtype=np.float32)
        if haze:
            other = np.array(list(_RGB.values())[rng.integers(len(_RGB))], dtype=np.float32)
            colour = colour + haze * _TINGE * rng.random() * (other - colour)
            stencil = stencil * (1 - haze * _FADE * rng.random())
        for moment, cell in enumerate(thing.cells):
            if cell is None:
                continue
            top, left = cell[0] * CELL + down, cell[1] * CELL + right
            patch = frames[moment, top : top + size, left : left + size]
            patch += stencil * (colour - patch)
    if haze:
        _spoil(frames, rng, haze)
    return frames.round().clip(0, 255).astype(np.uint8)


def _spoil(frames: np.ndarray, rng: np.random.Generator, haze: float) -> None:
    """Hides places behind blinds and adds noise, in place."""
    for frame in frames:
        for _ in range(rng.binomial(_BLINDS, haze)):
            height, width = rng.integers(CELL // 3, CELL, size=2)
            top, left = rng.integers(FRAME - height), rng.integers(FRAME - width)
            frame[top : top + height, left : left + width] = 100
    grains = rng.standard_normal((len(frames), FRAME // _GRAIN, FRAME // _GRAIN, 3)) * haze * _NOISE
    frames += grains.repeat(_GRAIN, axis=1).repeat(_GRAIN, axis=2).astype(np.float32)


def sampled(pictures: np.ndarray) -> np.ndarray:
    """The frames that a reader at 2 frames a second gets: ``(4, ...)`` → ``(8, ...)``."""
    return pictures.repeat(SAMPLED_PER_MOMENT, axis=0)


def write_mp4(pictures: np.ndarray, path: Path) -> None:
    """Writes pictures, each held for a second, as H.264 (8 frames a second, 4:2:0), whole or not at all."""
    partial = path.with_suffix(".partial.mp4")
    with av.open(str(partial), mode="w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "14", "preset": "veryfast", "threads": "1"})
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for picture in pictures.repeat(FRAMES_PER_MOMENT, axis=0):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    partial.replace(path)
