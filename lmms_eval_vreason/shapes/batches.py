"""Training batches: several questions a clip, whose video and shared prefix are computed once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lmms_eval_vreason.shapes.questions import KINDS, Question, ask, prompt_text
from lmms_eval_vreason.shapes.render import render, sampled
from lmms_eval_vreason.shapes.vocabulary import COLOURS, COLUMNS, DIRECTIONS, LETTERS, NUMBERS, ROWS, SHAPES, words
from lmms_eval_vreason.shapes.world import MOMENTS, RECIPES, SIDE, Scene, make_scene

QUESTIONS_A_CLIP = 3
_RECIPE_SHARES = (0.3, 0.25, 0.25, 0.2)  # move, race, order, vanish
_DIRECT_SHARE = 0.08
_PIXEL_NOISE = 4.0  # standard deviation in grey levels: about what H.264 adds
_IGNORED = -100


@dataclass(frozen=True)
class Segments:
    """Token rows that follow a shared prefix, right-padded.

    ``ids`` and ``labels`` are ``(rows, tokens)``, labels -100 outside the response; ``clip`` gives each row's clip.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    clip: torch.Tensor


@dataclass(frozen=True)
class Batch:
    """Pixels of some clips as the processor gives them, and the segments asked about them in groups of like length.

    ``names``: the words for what each video token shows, ``(clips * video tokens, 5)`` ids; see :func:`name_cells`.
    """

    pixel_values: torch.Tensor
    grid_thw: torch.Tensor
    groups: list[Segments]
    names: torch.Tensor


class Layout:
    """The chat template cut at the end of the video: the shared prefix, and what surrounds a prompt after it."""

    def __init__(self, processor, pixels: np.ndarray):
        """``pixels``: the frames of any clip, ``(8, 84, 84, 3)``; all clips have its shape."""
        self.processor = processor
        content = [{"type": "video"}, {"type": "text", "text": "\0"}]
        chat = [{"role": "user", "content": content}]
        text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        before, self.after_prompt = text.split("\0")
        inputs = self.encode_videos([pixels])
        tokens = int(inputs["video_grid_thw"].prod()) // processor.video_processor.merge_size**2
        before = before.replace(processor.video_token, processor.video_token * tokens)
        self.prefix = torch.tensor(processor.tokenizer(before)["input_ids"])

    def encode_videos(self, clips: list[np.ndarray]):
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


def _pad(rows: list[tuple[list[int], list[int]]], clips: list[int], pad: int) -> Segments:
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [_IGNORED] * (longest - len(labels)) for _, labels in rows])
    return Segments(ids, labels, torch.tensor(clips))


def questions_on(scene: Scene, recipe: str, rng: np.random.Generator) -> list[Question]:
    """Three questions: first what the recipe is for, then what any scene can be asked."""
    allowed = [kind for kind, (_, recipes) in KINDS.items() if recipe in recipes]
    special = [kind for kind in allowed if len(KINDS[kind][1]) == 1]
    general = [kind for kind in allowed if kind not in special]
    kinds = [*special, *rng.permutation(general * QUESTIONS_A_CLIP).tolist()]
    asked = (ask(scene, kind, rng) for kind in kinds)
    return [question for question in asked if question is not None][:QUESTIONS_A_CLIP]


# The words that tell video tokens apart, set by set.
NAME_SETS = ((*COLOURS, "nothing"), (*SHAPES, "nothing"), ROWS, COLUMNS, NUMBERS[:MOMENTS])


def name_cells(scene: Scene) -> list[tuple[str, ...]]:
    """For each video token in order: the colour and shape of what its cell shows, its row, column and moment."""
    named = []
    for moment, row, column in np.ndindex(MOMENTS, SIDE, SIDE):
        seen = [thing for thing in scene.things if thing.cells[moment] == (row, column)]
        what = (seen[0].colour, seen[0].shape) if seen else ("nothing", "nothing")
        named.append((*what, ROWS[row], COLUMNS[column], NUMBERS[moment]))
    return named


def _letters(tokenizer) -> set[int]:
    """The ids of the four letters with a space before them."""
    return {ids[0] for ids in tokenizer([f" {letter}" for letter in LETTERS])["input_ids"]}


def _look_up_row(layout: Layout, rng: np.random.Generator, question: Question) -> tuple[list[int], list[int]]:
    """A question's prompt, the first few of its reasons, then four times any option and its letter."""
    notes = question.reasons.split(", ")
    kept = ", ".join(notes[: rng.integers(len(notes) + 1)])
    asked = rng.integers(len(LETTERS), size=4)
    said = "".join(f". So it is {question.options[index]} {LETTERS[index]}" for index in asked)
    ids, _ = layout.segment(question.prompt(), f"<think>{kept}{said}")
    letters = _letters(layout.processor.tokenizer)
    return ids, [token if token in letters else _IGNORED for token in ids]


def video_batch(
    layout: Layout, rng: np.random.Generator, clips: int, *, groups: int = 3, look_ups: bool = False
) -> Batch:
    """A batch of ``clips`` training clips with three questions each, in ``groups`` of like length.

    With ``look_ups`` every question comes a second time, to look up letters after its prompt.
    """
    frames, rows, names = [], [], []
    for clip in range(clips):
        recipe = str(rng.choice(RECIPES, p=_RECIPE_SHARES))
        scene = make_scene(rng, recipe, "train")
        pixels = render(scene, rng).astype(np.float32)
        pixels += rng.standard_normal(pixels.shape, dtype=np.float32) * _PIXEL_NOISE
        frames.append(sampled(pixels.clip(0, 255).astype(np.uint8)))
        names += name_cells(scene)
        for question in questions_on(scene, recipe, rng):
            direct = bool(rng.random() < _DIRECT_SHARE)
            rows.append((clip, layout.segment(question.prompt(direct=direct), question.response(direct=direct))))
            if look_ups:
                rows.append((clip, _look_up_row(layout, rng, question)))
    rows.sort(key=lambda row: len(row[1][0]))
    size = -(-len(rows) // groups)
    tokenizer = layout.processor.tokenizer
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    videos = layout.encode_videos(frames)
    return Batch(
        videos["pixel_values_videos"],
        videos["video_grid_thw"],
        [_pad([row for _, row in part], [clip for clip, _ in part], tokenizer.pad_token_id) for part in parts],
        torch.tensor(tokenizer([" " + " ".join(named) for named in names])["input_ids"]),
    )


_HEADS = [
    *(f"What colour is the {shape}?" for shape in SHAPES),
    *(f"What shape is the {colour} object?" for colour in COLOURS),
    *(f"Which way does the {colour} object move?" for colour in COLOURS),
    *(f"What colour is the object that {what}?" for what in ("moves", "disappears", "appears first", "appears last")),
    "What colour is the object that moves more times?",
    "How many objects are in the whole clip?",
]
_OPTION_WORDS = [*COLOURS, *SHAPES, *DIRECTIONS, *NUMBERS[1:5]]


def _some(rng: np.random.Generator, most: int, *pools: Sequence[str]) -> str:
    """Words out of ``pools``, each with a space before it: none to ``most``, every scale of length as often."""
    length = int((most + 1) ** rng.random()) - int(rng.random() < 0.2)
    chosen = (pools[index] for index in rng.integers(len(pools), size=length))
    return "".join(f" {pool[rng.integers(len(pool))]}" for pool in chosen)


def _look_ups(rng: np.random.Generator, vocabulary: list[str], others: list[str], filler: int, after: str) -> str:
    """Words or a question, four options, words (the options' among them), then twice any option and its letter."""
    options = [vocabulary[index] for index in rng.choice(len(vocabulary), size=len(LETTERS), replace=False)]
    asked = rng.integers(len(LETTERS), size=2)
    said = "".join(f". So it is {options[index]} {LETTERS[index]}" for index in asked)
    between = _some(rng, filler, options, _OPTION_WORDS, others)
    if rng.random() < 0.5:
        head = _HEADS[rng.integers(len(_HEADS))]
        return prompt_text(head, options, direct=False) + after + "<think>" + between + said
    marked = "".join(f"\n{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True))
    return _some(rng, filler, _OPTION_WORDS, others) + marked + "\n" + between + said


def drill_batch(layout: Layout, rng: np.random.Generator, rows: int, *, filler: int = 8) -> Segments:
    """Text alone: look-ups of an option's letter, half of them among the world's options, half among any words.

    Looking the letter up is what a tiny model learns last, after a long plateau, for it needs all parts of the way at
    once. Many short rows of ever new options get over it soonest. Only the letters are to be foretold. At most
    ``filler`` words stand before the options, and between them and the look-ups: what is learnt at a short distance is
    carried to the next longer one.
    """
    tokenizer = layout.processor.tokenizer
    others = [word for word in words() if word not in (*_OPTION_WORDS, *LETTERS)]
    texts = [
        _look_ups(rng, others if row % 2 else _OPTION_WORDS, others, filler, layout.after_prompt) for row in range(rows)
    ]
    letters = _letters(tokenizer)
    segments = [(ids, [i if i in letters else _IGNORED for i in ids]) for ids in tokenizer(texts)["input_ids"]]
    return _pad(segments, [0] * rows, tokenizer.pad_token_id)
