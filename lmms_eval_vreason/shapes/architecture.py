"""Tiny Qwen2.5-VL checkpoints: config, tokenizer, processor and chat template, saved as any published checkpoint is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from lmms_eval_vreason.shapes.vocabulary import build_tokenizer

# What Qwen2.5-VL's template does: a default system turn, vision placeholders inside a turn, an optional numbering of
# pictures and videos, and an open assistant turn when a generation is asked for.
_CHAT_TEMPLATE = Path(__file__).parent / "checkpoint" / "chat_template.jinja"
# The published checkpoints' bounds, which leave a frame of 84 x 84 pixels as it is.
MIN_PIXELS = 56 * 56
MAX_PIXELS = 12845056


def build_processor() -> Qwen2_5_VLProcessor:
    """The processor of a tiny checkpoint: 14-pixel patches, merged 2 x 2, two frames a temporal patch."""
    options: dict[str, Any] = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
    size = {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=dict(size), **options),
        tokenizer=build_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(size=dict(size), **options),
        chat_template=_CHAT_TEMPLATE.read_text(encoding="utf-8"),
    )


@dataclass(frozen=True)
class Sizes:
    """The sizes of a Qwen2.5-VL model. The defaults make a tiny one.

    Attributes:
        intermediate_size: 0 means three times ``hidden_size``.
        vocabulary: Rows of the embedding; 0 means as many as the tokenizer has tokens.
        vision_intermediate_size: 0 means twice ``vision_hidden_size``.
        full_attention_layers: The vision layers that attend beyond their window; empty means the last one.
    """

    hidden_size: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    intermediate_size: int = 0
    vocabulary: int = 0
    tie_word_embeddings: bool = True
    vision_layers: int = 2
    vision_hidden_size: int = 32
    vision_heads: int = 2
    vision_intermediate_size: int = 0
    full_attention_layers: tuple[int, ...] = ()
    rope_theta: float = 1e6

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.heads


def build_config(tokenizer: PreTrainedTokenizerBase, sizes: Sizes) -> Qwen2_5_VLConfig:
    """The Qwen2.5-VL config of these sizes for ``tokenizer``.

    The multimodal rotary sections take a quarter of the rotary frequencies for time and split the rest between height
    and width, as the published checkpoints do.
    """
    half = sizes.head_dim // 2
    time = half // 4
    height = (half - time) // 2
    token: Any = tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": sizes.vocabulary or len(tokenizer),
        "hidden_size": sizes.hidden_size,
        "intermediate_size": sizes.intermediate_size or 3 * sizes.hidden_size,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "initializer_range": 0.04,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": sizes.rope_theta,
            "mrope_section": [time, height, half - time - height],
        },
        **dict.fromkeys(("bos_token_id", "pad_token_id"), token("<|endoftext|>")),
        "eos_token_id": token("<|im_end|>"),
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=_vision_config(sizes),
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=sizes.tie_word_embeddings,
    )


def _vision_config(sizes: Sizes) -> dict[str, Any]:
    return {
        "depth": sizes.vision_layers,
        "hidden_size": sizes.vision_hidden_size,
        "intermediate_size": sizes.vision_intermediate_size or 2 * sizes.vision_hidden_size,
        "num_heads": sizes.vision_heads,
        "out_hidden_size": sizes.hidden_size,
        "fullatt_block_indexes": list(sizes.full_attention_layers or (sizes.vision_layers - 1,)),
        "tokens_per_second": 2,
        "initializer_range": 0.04,
    }


def build_generation_config(tokenizer: PreTrainedTokenizerBase, *, repetition_penalty: float = 1.0) -> GenerationConfig:
    """Greedy decoding that ends at ``<|im_end|>`` or ``<|endoftext|>``."""
    im_end, endoftext = map(tokenizer.convert_tokens_to_ids, ("<|im_end|>", "<|endoftext|>"))
    return GenerationConfig(
        do_sample=False,
        bos_token_id=endoftext,
        eos_token_id=[im_end, endoftext],
        pad_token_id=endoftext,
        repetition_penalty=repetition_penalty,
    )


def save_checkpoint(
    model: PreTrainedModel, processor: Qwen2_5_VLProcessor, folder: str | Path, *, dtype: str = "float32"
) -> Path:
    """Writes weights in ``dtype`` (safetensors), configs, tokenizer, chat template and processor.

    Returns:
        ``folder``, which is created if missing.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def random_checkpoint(
    folder: str | Path, *, seed: int = 0, dtype: str = "float32", repetition_penalty: float = 1.0, **sizes: Any
) -> Path:
    """A tiny untrained Qwen2.5-VL checkpoint, for tests: the same seed and sizes give the same weights.

    Args:
        folder: Where to write; created if missing.
        seed: Of the random weights. The caller's random state is left alone.
        dtype: Of the stored weights, a torch name such as ``"float32"`` or ``"bfloat16"``.
        repetition_penalty: Goes into ``generation_config.json``; the published checkpoints have 1.05.
        sizes: Fields of :class:`Sizes`.

    Returns:
        The folder, which plain ``from_pretrained`` of transformers' processor and model classes loads.
    """
    processor = build_processor()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(build_config(processor.tokenizer, Sizes(**sizes)))
    model.generation_config = build_generation_config(processor.tokenizer, repetition_penalty=repetition_penalty)
    return save_checkpoint(model, processor, folder, dtype=dtype)
