"""Prompts and their media → the processor's inputs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from lmms_eval_vreason.media.frames import Frames
from lmms_eval_vreason.run.samples import Sample


def render(processor: ProcessorMixin, sample: Sample) -> str:
    """A sample's prompt as the chat template writes it, with one placeholder an image or video."""
    prompt: str = processor.apply_chat_template(sample.messages, tokenize=False, add_generation_prompt=True)
    return prompt


def process(processor: ProcessorMixin, texts: Sequence[str], media: Sequence[Sequence[Any]]) -> BatchFeature:
    """The processor's inputs for rendered prompts, padded on the left.

    Padding is masked and repeats the row's first token, so that what looks at the whole prompt (a repetition penalty)
    sees no token that the prompt does not hold, and a batch chooses what its samples choose alone.

    Args:
        media: For each prompt its read images and videos, in order.
    """
    videos = [item for items in media for item in items if isinstance(item, Frames)]
    images = [item for items in media for item in items if not isinstance(item, Frames)]
    inputs: BatchFeature = processor(
        text=list(texts),
        images=images or None,
        videos=[video.pixels for video in videos] or None,
        text_kwargs={"padding": True, "padding_side": "left"},
        # Sampled and resized already: a second resize would change pixels and cost time.
        images_kwargs={"do_resize": False},
        videos_kwargs={
            "do_resize": False,
            "do_sample_frames": False,
            "video_metadata": [video.metadata for video in videos] or None,
        },
        return_tensors="pt",
    )
    present = inputs["attention_mask"].bool()
    first = inputs["input_ids"].gather(1, present.long().argmax(dim=1, keepdim=True))
    inputs["input_ids"] = torch.where(present, inputs["input_ids"], first)
    return inputs


def check_context(model: PreTrainedModel, attention_mask: Tensor) -> None:
    """Raises ValueError if a prompt, (batch, tokens) of them, does not fit into the model's context."""
    longest = int(attention_mask.sum(dim=1).max())
    context = model.config.text_config.max_position_embeddings
    if longest >= context:
        raise ValueError(
            f"the prompt has {longest} tokens and the model's context {context}: lower max_num_frames or max_pixels"
        )
