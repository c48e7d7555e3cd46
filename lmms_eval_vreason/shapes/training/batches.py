"""Training batches: several questions on each clip, whose video and shared prefix are computed once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from lmms_eval_vreason.shapes.questions import KINDS, SceneQuestion, ask
from lmms_eval_vreason.shapes.render import render, sampled
from lmms_eval_vreason.shapes.vocabulary import COLOURS, COLUMNS, DIRECTIONS, LETTERS, NUMBERS, ROWS, SHAPES, words
from lmms_eval_vreason.shapes.world import MOMENTS, RECIPES, SIDE, Scene, make_scene

QUESTIONS_A_CLIP = 3
_RECIPE_SHARES = (0.3, 0.25, 0.25, 0.2)  # move, race, order, vanish
_DIRECT_SHARE = 0.08
_PIXEL_NOISE = 4.0  # standard deviation in grey levels: about what H.264 adds
_IGNORED = -100
# What follows from the words before it: in a path, and in a count.
_DERIVED = {"more": (*NUMBERS, "none", "stays", "moves", "hops"), "count": NUMBERS}


@dataclass(frozen=True)
class Segments:
    """Token rows that follow a shared prefix, right-padded.

    ``ids`` and ``labels`` are ``(rows, tokens)``, labels -100 where nothing is to be learnt; ``clip`` is each row's
    clip.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    clip: torch.Tensor


@dataclass(frozen=True)
class Batch:
    """Pixels of some clips as the processor gives them, and the segments asked about them in groups of like length.

    ``names``: what each video token shows, ``(clips * video tokens, 5)`` places in :data:`NAME_SETS`.
    """

    pixel_values: torch.Tensor
    grid_thw: torch.Tensor
    groups: list[Segments]
    names: torch.Tensor


class Layout:
    """The chat template cut at the end of the video: the shared prefix, and what surrounds a prompt after it."""

    def __init__(self, processor: Any, pixels: np.ndarray) -> None:
        """``pixels``: The frames of any clip, ``(8, 84, 84, 3)``; all clips have its shape."""
        self.processor = processor
        content = [{"type": "video"}, {"type": "text", "text": "\0"}]
        chat = [{"role": "user", "content": content}]
        text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        before, self.after_prompt = text.split("\0")
        inputs = self.encode_videos([pixels])
        self.grid_thw = inputs["video_grid_thw"]
        tokens = int(self.grid_thw.prod()) // processor.video_processor.merge_size**2
        before = before.replace(processor.video_token, processor.video_token * tokens)
        self.prefix = torch.tensor(processor.tokenizer(before)["input_ids"])

    def encode_videos(self, clips: list[np.ndarray]) -> Any:
        """The processor's inputs for clips of ``(8, 84, 84, 3)`` each."""
        return self.processor.video_processor(
            videos=[torch.from_numpy(clip).permute(0, 3, 1, 2) for clip in clips],
            do_sample_frames=False,
            return_tensors="pt",
        )

    def segment(self, prompt: str, response: str) -> tuple[list[int], list[int]]:
        """Ids and labels of one prompt and response, ended by ``<|im_end|>``."""
        tokenizer = self.processor.tokenizer
        asked = tokenizer(prompt + self.after_prompt)["input_ids"]
        said = [*tokenizer(response)["input_ids"], tokenizer.eos_token_id]
        return asked + said, [_IGNORED] * len(asked) + said


_Row = tuple[list[int], list[int], int]  # ids, labels and clip of one row of :class:`Segments`


def _pad(rows: Sequence[_Row], pad: int) -> Segments:
    ids, labels, clips = zip(*rows, strict=True)

    def tensor(column: Sequence[list[int]], filler: int) -> torch.Tensor:
        return pad_sequence([torch.tensor(row) for row in column], batch_first=True, padding_value=filler)

    return Segments(tensor(ids, pad), tensor(labels, _IGNORED), torch.tensor(clips))


def questions_on(scene: Scene, recipe: str, rng: np.random.Generator, most: int) -> list[SceneQuestion]:
    """At most ``most`` questions: first what the recipe is for, then what any scene can be asked."""
    allowed = [kind for kind, (_, recipes) in KINDS.items() if recipe in recipes]
    special = [kind for kind in allowed if len(KINDS[kind][1]) == 1]
    general = [kind for kind in allowed if kind not in special]
    kinds = [*special, *rng.permutation(general * most).tolist()]
    asked = (ask(scene, kind, rng) for kind in kinds)
    return [question for question in asked if question is not None][:most]


# The words that tell video tokens apart, set by set.
NAME_SETS = ((*COLOURS, "nothing"), (*SHAPES, "nothing"), ROWS, COLUMNS, NUMBERS[:MOMENTS])


def name_cells(scene: Scene) -> list[list[int]]:
    """For each video token in order: the colour and shape of what its cell shows, its row, column and moment."""
    named = []
    for moment, row, column in np.ndindex(MOMENTS, SIDE, SIDE):
        seen = [thing for thing in scene.things if thing.cells[moment] == (row, column)]
        what = (seen[0].colour, seen[0].shape) if seen else ("nothing", "nothing")
        words_ = (*what, ROWS[row], COLUMNS[column], NUMBERS[moment])
        named.append([names.index(word) for names, word in zip(NAME_SETS, words_, strict=True)])
    return named


@cache
def _ids(tokenizer: Any, words_: tuple[str, ...]) -> set[int]:
    """The ids of words with a space before them."""
    return {ids[0] for ids in tokenizer([f" {word}" for word in words_])["input_ids"]}


def video_batch(layout: Layout, rng: np.random.Generator, clips: int, *, groups: int = 3) -> Batch:
    """A batch of training clips of any haze, three questions each, in ``groups`` of like length."""
    frames, rows, names = [], [], []
    for clip in range(clips):
        recipe = str(rng.choice(RECIPES, p=_RECIPE_SHARES))
        scene = make_scene(rng, recipe, "train")
        pixels = render(scene, rng, float(rng.random())).astype(np.float32)
        pixels += rng.standard_normal(pixels.shape, dtype=np.float32) * _PIXEL_NOISE
        frames.append(sampled(pixels.clip(0, 255).astype(np.uint8)))
        names += name_cells(scene)
        for question in questions_on(scene, recipe, rng, QUESTIONS_A_CLIP):
            direct = bool(rng.random() < _DIRECT_SHARE)
            ids, labels = layout.segment(question.prompt(direct=direct), question.response(direct=direct))
            rows.append((ids, labels, clip))
    rows.sort(key=lambda row: len(row[0]))
    size = -(-len(rows) // groups)
    pad, videos = layout.processor.tokenizer.pad_token_id, layout.encode_videos(frames)
    return Batch(
        videos["pixel_values_videos"],
        videos["video_grid_thw"],
        [_pad(rows[start : start + size], pad) for start in range(0, len(rows), size)],
        torch.tensor(names),
    )


_OPTION_WORDS = [*COLOURS, *SHAPES, *DIRECTIONS, *NUMBERS[1:5]]
_OTHER_WORDS = [word for word in words() if word not in (*_OPTION_WORDS, *LETTERS)]


def _look_ups(tokenizer: Any, rng: np.random.Generator, vocabulary: list[str]) -> _Row:
    """Four lettered options, then twelve times one of them and its letter; only the letters are to be predicted."""
    options = [vocabulary[index] for index in rng.choice(len(vocabulary), size=len(LETTERS), replace=False)]
    marked = "".join(f"\n{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True))
    said = "".join(f" {options[index]} {LETTERS[index]}" for index in rng.integers(len(LETTERS), size=12))
    ids = tokenizer(f"{marked}\n{said}")["input_ids"]
    letters = _ids(tokenizer, LETTERS)
    return ids, [token if token in letters else _IGNORED for token in ids], 0


def _conclusion(layout: Layout, rng: np.random.Generator) -> _Row:
    """A question with its chain of thought but no clip; only what follows from the notes is to be predicted."""
    tokenizer, questions = layout.processor.tokenizer, list[SceneQuestion]()
    while not questions:
        recipe = str(rng.choice(RECIPES, p=_RECIPE_SHARES))
        questions = questions_on(make_scene(rng, recipe, "train"), recipe, rng, QUESTIONS_A_CLIP)
    question = questions[rng.integers(len(questions))]
    ids, labels = layout.segment(question.prompt(), question.response())
    (stop,) = tokenizer(".")["input_ids"]
    end = max(at for at, token in enumerate(ids) if token == stop)
    derived = _ids(tokenizer, _DERIVED[question.kind]) if question.kind in _DERIVED else set()
    given = (at < end and token not in derived for at, token in enumerate(ids))
    return ids, [_IGNORED if hidden else label for hidden, label in zip(given, labels, strict=True)], 0


def drill_batch(layout: Layout, rng: np.random.Generator, rows: int, *, conclusions: bool) -> Segments:
    """Text alone: look-ups of an option's letter, half among the world's options, half among any words.

    A tiny model learns to look the letter up only after a long plateau, because it needs all of the steps at once. Many
    look-ups in a short row shorten it most. With ``conclusions`` half of the rows are questions whose notes are given.
    """
    tokenizer = layout.processor.tokenizer
    drilled = rows // 2 if conclusions else rows
    parts = [_look_ups(tokenizer, rng, _OTHER_WORDS if row % 2 else _OPTION_WORDS) for row in range(drilled)]
    return _pad([*parts, *(_conclusion(layout, rng) for _ in range(rows - drilled))], tokenizer.pad_token_id)
