"""Tiny Qwen2.5-VL checkpoints: config, tokenizer, processor and chat template, saved as any published checkpoint is."""

from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from lmms_eval_vreason.shapes.vocabulary import build_tokenizer

PATCH_SIZE = 14
MERGE_SIZE = 2
TEMPORAL_PATCH_SIZE = 2
# The published checkpoints' bounds: a frame of 84 x 84 pixels is neither enlarged nor shrunk.
MIN_PIXELS = 56 * 56
MAX_PIXELS = 12845056

# What Qwen2.5-VL's template does: a default system turn, vision placeholders inside a turn, an optional numbering
# of pictures and videos, and an open assistant turn when a generation is asked for.
CHAT_TEMPLATE = """\
{%- set seen = namespace(pictures=0, videos=0) -%}
{%- if messages and messages[0]['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] in ('image', 'image_url') -%}
{%- set seen.pictures = seen.pictures + 1 -%}
{%- if add_vision_id -%}{{- 'Picture ' ~ seen.pictures ~ ': ' -}}{%- endif -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part['type'] == 'video' -%}
{%- set seen.videos = seen.videos + 1 -%}
{%- if add_vision_id -%}{{- 'Video ' ~ seen.videos ~ ': ' -}}{%- endif -%}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- elif 'text' in part -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def build_processor() -> Qwen2_5_VLProcessor:
    """The processor of a tiny checkpoint: 14-pixel patches, merged 2 x 2, two frames a temporal patch."""
    patches = {"patch_size": PATCH_SIZE, "merge_size": MERGE_SIZE, "temporal_patch_size": TEMPORAL_PATCH_SIZE}
    size = {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=dict(size), **patches),
        tokenizer=build_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(size=dict(size), **patches),
        chat_template=CHAT_TEMPLATE,
    )


def build_config(
    tokenizer,
    *,
    layers: int = 2,
    hidden_size: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    intermediate_size: int | None = None,
    vision_layers: int = 2,
    vision_hidden_size: int = 32,
    vision_heads: int = 2,
    rope_theta: float = 1e6,
    initializer_range: float = 0.04,
    tie_word_embeddings: bool = True,
) -> Qwen2_5_VLConfig:
    """A small Qwen2.5-VL config for ``tokenizer``.

    ``intermediate_size`` defaults to three times ``hidden_size``. The multimodal rotary sections take a quarter of the
    rotary frequencies for time and split the rest between height and width, as the published checkpoints do.

    Raises:
        ValueError: if the head counts don't divide the sizes they split.
    """
    if hidden_size % heads or heads % kv_heads or (hidden_size // heads) % 2:
        raise ValueError(
            f"hidden_size={hidden_size}, heads={heads}, kv_heads={kv_heads}: hidden_size must be an even multiple of "
            "heads, and heads a multiple of kv_heads"
        )
    if vision_hidden_size % (4 * vision_heads):
        raise ValueError(
            f"vision_hidden_size={vision_hidden_size} must be a multiple of 4 x {vision_heads} vision_heads"
        )
    half = hidden_size // heads // 2
    time = half // 4
    height = (half - time) // 2
    token = tokenizer.convert_tokens_to_ids
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": hidden_size,
            "intermediate_size": intermediate_size or 3 * hidden_size,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "max_position_embeddings": 32768,
            "initializer_range": initializer_range,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": rope_theta,
                "mrope_section": [time, height, half - time - height],
            },
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
        },
        vision_config={
            "depth": vision_layers,
            "hidden_size": vision_hidden_size,
            "intermediate_size": 2 * vision_hidden_size,
            "num_heads": vision_heads,
            "out_hidden_size": hidden_size,
            "patch_size": PATCH_SIZE,
            "spatial_merge_size": MERGE_SIZE,
            "temporal_patch_size": TEMPORAL_PATCH_SIZE,
            "window_size": 112,
            "fullatt_block_indexes": [vision_layers - 1],
            "tokens_per_second": 2,
            "initializer_range": initializer_range,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=tie_word_embeddings,
    )


def build_generation_config(tokenizer, *, repetition_penalty: float = 1.0) -> GenerationConfig:
    """Greedy decoding that ends at ``<|im_end|>`` or ``<|endoftext|>``."""
    im_end, endoftext = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    return GenerationConfig(
        do_sample=False,
        bos_token_id=endoftext,
        eos_token_id=[im_end, endoftext],
        pad_token_id=endoftext,
        repetition_penalty=repetition_penalty,
    )


def save_checkpoint(
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Qwen2_5_VLProcessor,
    folder: str | Path,
    *,
    dtype: str = "float32",
) -> Path:
    """Writes weights in ``dtype`` (safetensors), configs, tokenizer, chat template and processor; gives the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def random_checkpoint(
    folder: str | Path,
    *,
    seed: int = 0,
    dtype: str = "float32",
    repetition_penalty: float = 1.0,
    **sizes,
) -> Path:
    """A tiny untrained Qwen2.5-VL checkpoint, for tests: the same seed and sizes give the same weights.

    Args:
        folder: where to write; made if missing.
        seed: of the random weights. The caller's random state is left alone.
        dtype: of the stored weights, a torch name such as ``"float32"`` or ``"bfloat16"``.
        repetition_penalty: goes into ``generation_config.json``; the published checkpoints are remembered with 1.05.
        sizes: see :func:`build_config` (``layers``, ``hidden_size``, ``heads``, ``kv_heads``, ...).

    Returns:
        The folder, which plain ``from_pretrained`` of transformers' processor and model classes loads.
    """
    processor = build_processor()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(build_config(processor.tokenizer, **sizes))
    model.generation_config = build_generation_config(processor.tokenizer, repetition_penalty=repetition_penalty)
    return save_checkpoint(model, processor, folder, dtype=dtype)
