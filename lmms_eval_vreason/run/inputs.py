"""Prompts and their media → the processor's inputs, as the model's family takes them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin
from transformers.video_utils import VideoMetadata

from lmms_eval_vreason.families.family import TOKEN_TYPES, Family
from lmms_eval_vreason.media.frames import Frames
from lmms_eval_vreason.media.rule import QWEN2, FrameRule
from lmms_eval_vreason.run.samples import Sample

_SECONDS_A_GRID = "video_second_per_grid"


@dataclass(frozen=True)
class PromptProcessor:
    """A checkpoint's processor, with what its family asks of a prompt.

    Attributes:
        rule: How frames are chosen and sized.
        template: Keyword arguments of the chat template, such as ``enable_thinking``.
    """

    processor: ProcessorMixin
    family: Family
    rule: FrameRule = QWEN2
    template: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    def render(self, sample: Sample) -> str:
        """A sample's prompt as the chat template writes it, with one placeholder an image or video."""
        how: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True, **self.template}
        prompt: str = self.processor.apply_chat_template(sample.messages, **how)
        return prompt

    def cut(self, prompt: str) -> tuple[str, str]:
        """A rendered prompt as (all up to the end of its last image or video, the rest).

        Raises:
            ValueError: Nothing marks that end, and what follows a medium would take a wrong position.
        """
        end = self._media_end.match(prompt)
        if end is None:
            return "", prompt
        if self.family.multimodal and end["mark"] is None:
            raise ValueError("the chat template does not mark the end of a video: set shared_prefix=off")
        return end[0], prompt[end.end() :]

    def process(self, texts: Sequence[str], media: Sequence[Sequence[Any]]) -> BatchFeature:
        """The processor's inputs for rendered prompts, padded on the left.

        Padding is masked and repeats the row's first token, so that what looks at the whole prompt (a repetition
        penalty) sees no token that the prompt does not hold, and a batch chooses what its samples choose alone.

        Args:
            media: For each prompt its read images and videos, in order.
        """
        videos = [item for items in media for item in items if isinstance(item, Frames)]
        images = [item for items in media for item in items if not isinstance(item, Frames)]
        # Sampled and mostly resized already: a second resize would change pixels and cost time.
        resize = {} if self.rule.token_side is None else {"do_resize": False}
        metadata = [video.metadata for video in videos]
        inputs: BatchFeature = self.processor(
            text=list(texts),
            images=images or None,
            videos=[video.pixels for video in videos] or None,
            text_kwargs={"padding": True, "padding_side": "left"},
            images_kwargs=resize,
            videos_kwargs={**resize, "do_sample_frames": False, "video_metadata": metadata or None},
            return_tensors="pt",
        )
        if _SECONDS_A_GRID in inputs:  # Its processor takes one rate for all videos, and is not given it.
            rates = [VideoMetadata(**each).sampled_fps for each in metadata]
            inputs[_SECONDS_A_GRID] = self.rule.merged / torch.tensor(rates)
        if not self.family.own_video_token and TOKEN_TYPES not in inputs:
            inputs[TOKEN_TYPES] = self._token_types(inputs["input_ids"], media)
        present = inputs["attention_mask"].bool()
        first = inputs["input_ids"].gather(1, present.long().argmax(dim=1, keepdim=True))
        inputs["input_ids"] = torch.where(present, inputs["input_ids"], first)
        return inputs

    def _token_types(self, input_ids: Tensor, media: Sequence[Sequence[Any]]) -> Tensor:
        """2 for each token of a video, 1 for an image's, where both have the image's placeholder."""
        placeholders = input_ids == self.processor.image_token_id  # type: ignore[attr-defined]
        types = torch.zeros_like(input_ids)
        for row, items in enumerate(media):
            kinds = torch.tensor([2 if isinstance(item, Frames) else 1 for item in items], dtype=types.dtype)
            if len(set(kinds.tolist())) > 1:
                # Only the processor knows how many tokens each takes.
                alone = [self.process([self.placeholders[isinstance(item, Frames)]], [[item]]) for item in items]
                counts = torch.tensor([int((each[TOKEN_TYPES] > 0).sum()) for each in alone])
                types[row, placeholders[row]] = kinds.repeat_interleave(counts)
            elif len(kinds):
                types[row, placeholders[row]] = kinds[0]
        return types

    @cached_property
    def special(self) -> dict[int, str]:
        """Id → text of the special tokens, those that only the tokenizer's own file calls special among them."""
        tokenizer = self.tokenizer
        added = {n: str(token) for n, token in tokenizer.added_tokens_decoder.items() if token.special}
        return {**added, **dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))}

    @property
    def placeholders(self) -> tuple[str, str]:
        """What stands for an image and for a video in a rendered prompt."""
        processor: Any = self.processor
        return processor.image_token, processor.video_token

    @cached_property
    def _media_end(self) -> re.Pattern[str]:
        media, marks = ("|".join(map(re.escape, each)) for each in (self.placeholders, self.special.values()))
        # The mark that ends a medium belongs to it.
        return re.compile(f"(?s:.*)(?:{media})(?P<mark>{marks})?")


def check_context(model: PreTrainedModel, attention_mask: Tensor) -> None:
    """Raises ValueError if a prompt, (batch, tokens) of them, does not fit into the model's context."""
    longest = int(attention_mask.sum(dim=1).max())
    context = model.config.get_text_config(decoder=True).max_position_embeddings
    if longest >= context:
        raise ValueError(
            f"the prompt has {longest} tokens and the model's context {context}: lower max_num_frames or max_pixels"
        )
