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


@cache
def _stencil(shape: str, size: int) -> np.ndarray:
    """How much of each pixel a shape covers: ``(size, size)`` floats from 0 to 1."""
    side = size * _SUPERSAMPLE
    image = Image.new("L", (side, side))
    draw = ImageDraw.Draw(image)
    end = side - 1
    if shape == "circle":
        draw.ellipse((0, 0, end, end), fill=255)
    elif shape == "square":
        draw.rectangle((0, 0, end, end), fill=255)
    elif shape == "triangle":
        draw.polygon(((side / 2, 0), (end, end), (0, end)), fill=255)
    elif shape == "cross":
        draw.rectangle((side * 0.34, 0, side * 0.66, end), fill=255)
        draw.rectangle((0, side * 0.34, end, side * 0.66), fill=255)
    elif shape == "ring":
        draw.ellipse((0, 0, end, end), fill=255)
        draw.ellipse((side * 0.27, side * 0.27, side * 0.73, side * 0.73), fill=0)
    else:
        raise ValueError(f"shape={shape!r} can't be drawn")
    return np.asarray(image.resize((size, size), Image.Resampling.BOX), dtype=np.float32) / 255


@cache
def _background(moment: int) -> np.ndarray:
    """The board of one moment, ``(84, 84, 3)``: the day breaks, and red and blue rise a little to the right and below.

    Light tells the moment and tint the cell: cues in the picture for what a tiny model can't read off positions.
    """
    column, row = np.meshgrid(np.arange(FRAME) / CELL, np.arange(FRAME) / CELL)
    grey = _DARKEST + _DAWN * moment
    return np.stack([grey + _SLOPE * column, np.full_like(row, grey), grey + _SLOPE * row], axis=-1).astype(np.float32)


def render(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """One picture a moment, ``(4, 84, 84, 3)`` uint8; sizes and places within the cells vary a little."""
    frames = np.stack([_background(moment) for moment in range(MOMENTS)])
    for thing in scene.things:
        size = int(rng.integers(20, 25))
        stencil = _stencil(thing.shape, size)[..., None]
        down, right = rng.integers(1, CELL - size, size=2)
        for moment, cell in enumerate(thing.cells):
            if cell is None:
                continue
            top, left = cell[0] * CELL + down, cell[1] * CELL + right
            patch = frames[moment, top : top + size, left : left + size]
            patch += stencil * (np.array(_RGB[thing.colour], dtype=np.float32) - patch)
    return frames.round().astype(np.uint8)


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
