"""A video in a prompt, as each family's processor writes it: token ids, token types, media. Four tokens a frame."""

from inspect import signature

import torch
from torch import Tensor
from transformers import Gemma4ForConditionalGeneration

START, STOP, VIDEO, IMAGE, PAD, END = 60, 61, 62, 63, 64, 65
WORDS = 56  # Ids below it are words.
AUDIO, FRAME_START, FRAME_STOP, UNUSED = 56, 57, 58, 59
PATCH_14, PATCH_16 = 3 * 2 * 14 * 14, 3 * 2 * 16 * 16
# Token ids, token types (2 for video) and the media arguments of the model.
Video = tuple[list[int], list[int], dict[str, Tensor]]


def grid(frames: int, patch: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Pixels of 4 x 4 patches a frame, four of them a token."""
    pixels = torch.randn(frames * 16, patch, generator=generator)
    return {"pixel_values_videos": pixels, "video_grid_thw": torch.tensor([[frames, 4, 4]])}


def one_run(frames: int, media: dict[str, Tensor], *, marks: bool = False, tokens: int | None = None) -> Video:
    """All of a video's tokens in one run."""
    count = 4 * frames if tokens is None else tokens
    ids, types = [VIDEO] * count, [2] * count
    return ([START, *ids, STOP], [0, *types, 0], media) if marks else (ids, types, media)


def run_a_frame(frames: int, media: dict[str, Tensor], token: int) -> Video:
    """A timestamp before each frame, marks around it."""
    ids = [each for time in range(frames) for each in (time + 1, START, *[token] * 4, STOP)]
    return ids, [2 if each == token else 0 for each in ids], media


def pixels(frames: int, generator: torch.Generator, *, side: int = 56) -> Tensor:
    return torch.randn(1, frames, 3, side, side, generator=generator)


def omni(frames: int, generator: torch.Generator) -> Video:
    media = {**grid(frames, PATCH_14, generator), "video_second_per_grid": torch.ones(1)}
    return one_run(frames, media, marks=True)


def qwen3(frames: int, generator: torch.Generator) -> Video:
    return run_a_frame(frames, grid(frames, PATCH_16, generator), VIDEO)


def smolvlm(frames: int, generator: torch.Generator) -> Video:
    media = {"pixel_values": pixels(frames, generator)}
    media["pixel_attention_mask"] = torch.ones(1, frames, 56, 56, dtype=torch.long)
    return run_a_frame(frames, media, IMAGE)


def video_llama(frames: int, generator: torch.Generator) -> Video:
    media = grid(frames, 3 * 14 * 14, generator) | {"video_merge_sizes": torch.tensor([2])}
    return one_run(frames, media | {"video_compression_mask": torch.ones(frames * 4, dtype=torch.bool)})


def glm(frames: int, generator: torch.Generator) -> Video:
    """Image tokens between a video's marks; a timestamp after each frame."""
    ids = [each for time in range(frames) for each in (FRAME_START, *[IMAGE] * 4, FRAME_STOP, time + 1)]
    types = [2 if each == IMAGE else 0 for each in ids]
    return [START, *ids, STOP], [0, *types, 0], grid(frames, PATCH_14, generator)


def gemma(frames: int, generator: torch.Generator) -> Video:
    at = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij"), -1).reshape(1, 16, 2)
    media = {
        "pixel_values_videos": torch.rand(frames, 16, 3 * 14 * 14, generator=generator),
        "video_position_ids": at.repeat(frames, 1, 1),
    }
    if "num_frames_per_video" in signature(Gemma4ForConditionalGeneration.forward).parameters:
        media["num_frames_per_video"] = torch.tensor([frames])
    else:  # transformers 5.17 has a dimension of videos.
        media = {name: each[None] for name, each in media.items()}
    return run_a_frame(frames, media, VIDEO)
