"""Training batches: several questions a clip, whose video and shared prefix are computed once."""

from dataclasses import dataclass

import numpy as np
import torch

from lmms_eval_vreason.shapes.questions import KINDS, Question, ask
from lmms_eval_vreason.shapes.render import render, sampled
from lmms_eval_vreason.shapes.vocabulary import COLOURS, DIRECTIONS, LETTERS, NUMBERS, SHAPES, words
from lmms_eval_vreason.shapes.world import RECIPES, Scene, make_scene

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
    """Pixels of some clips as the processor gives them, and the segments asked about them in groups of like length."""

    pixel_values: torch.Tensor
    grid_thw: torch.Tensor
    groups: list[Segments]


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


def video_batch(layout: Layout, rng: np.random.Generator, clips: int, groups: int = 3) -> Batch:
    """A batch of ``clips`` training clips with three questions each, in ``groups`` of like length."""
    frames, rows = [], []
    for clip in range(clips):
        recipe = str(rng.choice(RECIPES, p=_RECIPE_SHARES))
        scene = make_scene(rng, recipe, "train")
        pixels = render(scene, rng).astype(np.float32)
        pixels += rng.standard_normal(pixels.shape, dtype=np.float32) * _PIXEL_NOISE
        frames.append(sampled(pixels.clip(0, 255).astype(np.uint8)))
        for question in questions_on(scene, recipe, rng):
            direct = bool(rng.random() < _DIRECT_SHARE)
            rows.append((clip, layout.segment(question.prompt(direct=direct), question.response(direct=direct))))
    rows.sort(key=lambda row: len(row[1][0]))
    size = -(-len(rows) // groups)
    pad = layout.processor.tokenizer.pad_token_id
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    videos = layout.encode_videos(frames)
    return Batch(
        videos["pixel_values_videos"],
        videos["video_grid_thw"],
        [_pad([row for _, row in part], [clip for clip, _ in part], pad) for part in parts],
    )


_OPTION_WORDS = [*COLOURS, *SHAPES, *DIRECTIONS, *NUMBERS[1:5]]
_FILLER = 8  # words between options and look-ups, at most


def _look_ups(rng: np.random.Generator, vocabulary: list[str], others: list[str]) -> str:
    """Four options, some other words, then twice any option and its letter."""
    options = [vocabulary[index] for index in rng.choice(len(vocabulary), size=len(LETTERS), replace=False)]
    marked = "".join(f"\n{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True))
    filler = " ".join(["\n", *(others[index] for index in rng.integers(len(others), size=rng.integers(_FILLER)))])
    asked = rng.integers(len(LETTERS), size=2)
    return marked + filler + "".join(f". So it is {options[index]} {LETTERS[index]}" for index in asked)


def drill_batch(layout: Layout, rng: np.random.Generator, rows: int) -> Segments:
    """Text alone: look-ups of an option's letter, half of them among the world's options, half among any words.

    Looking the letter up is what a tiny model learns last, after a long plateau, for it needs all parts of the way at
    once. Many short rows of ever new options get over it soonest. Only the letters are to be foretold.
    """
    tokenizer = layout.processor.tokenizer
    others = [word for word in words() if word not in (*_OPTION_WORDS, *LETTERS)]
    texts = [_look_ups(rng, others if row % 2 else _OPTION_WORDS, others) for row in range(rows)]
    letters = {ids[0] for ids in tokenizer([f" {letter}" for letter in LETTERS])["input_ids"]}
    segments = [(ids, [i if i in letters else _IGNORED for i in ids]) for ids in tokenizer(texts)["input_ids"]]
    return _pad(segments, [0] * rows, tokenizer.pad_token_id)
