"""Multimodal rotary positions as Qwen2-VL and Qwen2.5-VL were trained with them.

Text goes on one after the highest position so far, as in Qwen's own code. transformers 5.3 and later place the text
after a video elsewhere, in the middle of the video's time. docs/positions.md has the rule and the evidence.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

# The values of `positions` in `generate` and in the model arguments.
CHOICES = ("trained", "transformers")
# Placeholder id → (3, tokens) of each of its images or videos: time, height and width, counted from its first token.
Grids = dict[int, Iterator[Tensor]]


def media_grids(
    config: PreTrainedConfig,
    image_grid_thw: Tensor | None = None,
    video_grid_thw: Tensor | None = None,
    second_per_grid_ts: Any = None,
) -> Grids:
    """The grids of a batch, in the order of the prompts. Arguments and errors as of :func:`trained_positions`."""
    if config.model_type not in ("qwen2_vl", "qwen2_5_vl"):
        raise TypeError(
            f"trained positions are known for qwen2_vl and qwen2_5_vl, not for {config.model_type}: "
            "pass positions='transformers'"
        )
    images = [] if image_grid_thw is None else image_grid_thw.tolist()
    videos = [] if video_grid_thw is None else video_grid_thw.tolist()
    seconds = torch.ones(len(videos)) if second_per_grid_ts is None else torch.as_tensor(second_per_grid_ts)
    if len(seconds) != len(videos):
        raise ValueError(f"second_per_grid_ts has {len(seconds)} values for {len(videos)} videos: pass one a video")
    image_times, video_times = ([torch.arange(grid[0]) for grid in grids] for grids in (images, videos))
    # Qwen2-VL counts temporal grids instead of seconds.
    if config.model_type == "qwen2_5_vl":
        # In float32, as in training: another precision falls on the other side of a whole number now and then.
        pairs = zip(video_times, seconds.float().cpu(), strict=True)
        video_times = [(times * each * config.vision_config.tokens_per_second).long() for times, each in pairs]

    def positions(times: Tensor, grid: list[int]) -> Tensor:
        height, width = (torch.arange(patches // config.vision_config.spatial_merge_size) for patches in grid[1:])
        return torch.cartesian_prod(times, height, width).T

    return {
        config.image_token_id: map(positions, image_times, images),
        config.video_token_id: map(positions, video_times, videos),
    }


def row_positions(ids: Tensor, grids: Grids, config: PreTrainedConfig) -> Tensor:
    """Positions of one unpadded prompt.

    Args:
        ids: (tokens,), on the CPU. Runs of placeholders are cut by their grids, so that two videos may touch.
        grids: The prompt's images and videos are taken from it.

    Returns:
        (3, tokens) on the CPU: time, height and width.

    Raises:
        ValueError: Placeholders and grids disagree.
    """
    media = ((ids == config.image_token_id) | (ids == config.video_token_id)).nonzero().flatten().tolist()
    parts: list[Tensor] = []
    done = following = 0  # Tokens placed, and the position of the next one.
    for start in media:
        if start < done:
            continue
        parts.append(torch.arange(following, following + start - done).expand(3, -1))
        following += start - done
        token = int(ids[start])
        grid = next(grids[token], None)
        if grid is None:
            name = "image_grid_thw" if token == config.image_token_id else "video_grid_thw"
            raise ValueError(f"the prompts hold more media than {name} has grids: pass every output of the processor")
        done = start + grid.shape[1]
        if int((ids[start:done] == token).sum()) != grid.shape[1]:
            raise ValueError(
                f"a grid of {grid.shape[1]} tokens meets fewer placeholders from token {start} of its prompt on: "
                "pass the prompt and the grids as the processor made them"
            )
        parts.append(following + grid)
        following = int(parts[-1].max()) + 1
    parts.append(torch.arange(following, following + len(ids) - done).expand(3, -1))
    return torch.cat(parts, dim=1)


def trained_positions(
    config: PreTrainedConfig,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    **media: Any,
) -> Tensor:
    """Positions of a padded batch of prompts, in the form in which ``generate`` takes ``position_ids``.

    Args:
        config: The model's, of Qwen2-VL or Qwen2.5-VL.
        input_ids: (batch, tokens).
        attention_mask: (batch, tokens), 0 for padding; None: nothing is padding.
        **media: ``image_grid_thw``, ``video_grid_thw`` (media, 3) in patches, and ``second_per_grid_ts`` (videos,),
            1 if left out. Any other output of the processor is passed over.

    Returns:
        (4, batch, tokens), int64: the plain text positions, then time, height and width. Padding stands at 0.

    Raises:
        ValueError: Placeholders and grids disagree.
        TypeError: Another family.
    """
    names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    grids = media_grids(config, **{name: media.get(name) for name in names})
    present = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    if present.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has the shape {tuple(present.shape)}: trained positions need that of input_ids, "
            f"{tuple(input_ids.shape)}"
        )
    positions = torch.zeros((4, *input_ids.shape), dtype=torch.long)
    for row, (ids, kept) in enumerate(zip(input_ids.cpu(), present.bool().cpu(), strict=True)):
        positions[0, row, kept] = torch.arange(int(kept.sum()))
        positions[1:, row, kept] = row_positions(ids[kept], grids, config)
    if any(next(left, None) is not None for left in grids.values()):
        raise ValueError("image_grid_thw or video_grid_thw has more grids than the prompts hold media")
    return positions.to(input_ids.device)


def ending_highest(positions: Tensor) -> Tensor:
    """A copy of prefilled :func:`trained_positions` from which transformers goes on as the rule does.

    transformers places each generated token one after the last column, axis by axis. In a prompt that ends with a
    video that column is neither the same on all axes nor the highest. The text's own axis stays as it is.
    """
    ending = positions.clone()
    ending[1:, :, -1] = positions[1:].amax(dim=(0, 2))
    return ending


def check_choice(positions: str) -> str:
    """Gives ``positions`` back. Raises ValueError unless it is one of the choices."""
    if positions not in CHOICES:
        raise ValueError(f"positions={positions!r} is not one of {', '.join(CHOICES)}")
    return positions
