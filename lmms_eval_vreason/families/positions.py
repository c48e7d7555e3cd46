"""Multimodal rotary positions as Qwen2-VL and Qwen2.5-VL were trained with them.

Text goes on one after the highest position so far, as in Qwen's own code. transformers 5.3 and later place the text
after a video elsewhere, in the middle of the video's time. docs/positions.md has the rule and the evidence.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

# The values of `positions` in `generate` and in the model arguments.
CHOICES = ("trained", "transformers")


@dataclass(frozen=True)
class PositionRule:
    """What a family's positions depend on.

    Attributes:
        image_token, video_token: Placeholder ids, one a merged patch.
        merge: Patches a side that the vision tower merges into one token.
        tokens_per_second: Positions in a second of video; None counts temporal grids instead of seconds (Qwen2-VL).
    """

    image_token: int
    video_token: int
    merge: int
    tokens_per_second: float | None

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "PositionRule":
        """The rule for a model's config. Raises TypeError for a family other than Qwen2-VL and Qwen2.5-VL."""
        if config.model_type not in ("qwen2_vl", "qwen2_5_vl"):
            raise TypeError(
                f"trained positions are known for qwen2_vl and qwen2_5_vl, not for {config.model_type}: "
                "pass positions='transformers'"
            )
        vision = config.vision_config
        per_second = vision.tokens_per_second if config.model_type == "qwen2_5_vl" else None
        return cls(config.image_token_id, config.video_token_id, vision.spatial_merge_size, per_second)


@dataclass(frozen=True)
class _Grid:
    """One image's or video's merged grid, and the position of each temporal grid, counted from its first."""

    times: list[int]
    height: int
    width: int

    @property
    def tokens(self) -> int:
        return len(self.times) * self.height * self.width

    def positions(self, start: int) -> Tensor:
        """(3, tokens), the first token at ``start`` on every axis."""
        axes = torch.tensor(self.times), torch.arange(self.height), torch.arange(self.width)
        return start + torch.cartesian_prod(*axes).T


class MediaGrids:
    """The images' and videos' grids of a batch, taken one after the other in the order of the prompts."""

    def __init__(
        self,
        rule: PositionRule,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        second_per_grid_ts: Any = None,
    ) -> None:
        images = [] if image_grid_thw is None else image_grid_thw.tolist()
        videos = [] if video_grid_thw is None else video_grid_thw.tolist()
        seconds = torch.ones(len(videos)) if second_per_grid_ts is None else torch.as_tensor(second_per_grid_ts)
        if len(seconds) != len(videos):
            raise ValueError(f"second_per_grid_ts has {len(seconds)} values for {len(videos)} videos: pass one a video")
        self._rule = rule
        image_grids = [_Grid(list(range(t)), h // rule.merge, w // rule.merge) for t, h, w in images]
        video_grids = [
            _Grid(self._times(t, each), h // rule.merge, w // rule.merge)
            for (t, h, w), each in zip(videos, seconds.cpu(), strict=True)
        ]
        self._left: dict[int, Iterator[_Grid]] = {
            rule.image_token: iter(image_grids),
            rule.video_token: iter(video_grids),
        }

    def _times(self, count: int, seconds: Tensor) -> list[int]:
        grids, per_second = torch.arange(count), self._rule.tokens_per_second
        if per_second is None:
            return list(grids.tolist())
        # In float32, as in training: another precision falls on the other side of a whole number now and then.
        return list((grids * seconds.float() * per_second).long().tolist())

    def next(self, token: int) -> _Grid:
        """The grid of the run that begins with this placeholder. Raises ValueError if there is none left."""
        grid = next(self._left[token], None)
        if grid is None:
            name = "image_grid_thw" if token == self._rule.image_token else "video_grid_thw"
            raise ValueError(f"the prompts hold more media than {name} has grids: pass every output of the processor")
        return grid

    def check_all_taken(self) -> None:
        """Raises ValueError if a grid has no placeholders in the prompts."""
        if any(next(grids, None) is not None for grids in self._left.values()):
            raise ValueError("image_grid_thw or video_grid_thw has more grids than the prompts hold media")


def row_positions(ids: Tensor, grids: MediaGrids, rule: PositionRule) -> Tensor:
    """Positions of one unpadded prompt.

    Args:
        ids: (tokens,). Runs of placeholders are cut by their grids, so that two videos may touch.
        grids: The prompt's images and videos are taken from it.

    Returns:
        (3, tokens) on the CPU: time, height and width.

    Raises:
        ValueError: Placeholders and grids disagree.
    """
    ids = ids.cpu()
    is_media = (ids == rule.image_token) | (ids == rule.video_token)
    media = is_media.nonzero().flatten().tolist()
    parts: list[Tensor] = []
    done = following = 0  # Tokens placed, and the position of the next one.
    for start in media:
        if start < done:
            continue
        parts.append(torch.arange(following, following + start - done).expand(3, -1))
        following += start - done
        token = int(ids[start])
        grid = grids.next(token)
        done = start + grid.tokens
        run = ids[start:done]
        if len(run) != grid.tokens or not bool((run == token).all()):
            raise ValueError(
                f"a grid of {grid.tokens} tokens meets fewer placeholders from token {start} of its prompt on: "
                "pass the prompt and the grids as the processor made them"
            )
        parts.append(grid.positions(following))
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
    rule = PositionRule.of(config)
    names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    grids = MediaGrids(rule, **{name: media.get(name) for name in names})
    present = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    if present.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has the shape {tuple(present.shape)}: trained positions need that of input_ids, "
            f"{tuple(input_ids.shape)}"
        )
    positions = torch.zeros((4, *input_ids.shape), dtype=torch.long)
    for row, (ids, kept) in enumerate(zip(input_ids.cpu(), present.bool().cpu(), strict=True)):
        positions[0, row, kept] = torch.arange(int(kept.sum()))
        positions[1:, row, kept] = row_positions(ids[kept], grids, rule)
    grids.check_all_taken()
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
