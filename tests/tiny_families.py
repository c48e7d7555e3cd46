"""A tiny configuration of each family, and what a video is in its prompts. A new family: one :class:`Tiny` more."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers
from family_videos import (
    AUDIO,
    FRAME_START,
    FRAME_STOP,
    IMAGE,
    PAD,
    PATCH_14,
    START,
    STOP,
    UNUSED,
    VIDEO,
    Video,
    gemma,
    glm,
    grid,
    omni,
    one_run,
    pixels,
    qwen3,
    run_a_frame,
    smolvlm,
    video_llama,
)
from random_model import text_config

PLACEHOLDERS = {"video_token_id": VIDEO, "image_token_id": IMAGE}
INDICES = {"video_token_index": VIDEO, "image_token_index": IMAGE}
MARKS = {"vision_start_token_id": START, "vision_end_token_id": STOP}


@dataclass(frozen=True)
class Tiny:
    """How the tests build a family.

    Attributes:
        classes: Its config and model in transformers, without the endings.
        config: Config arguments from a number of layers.
        video: (frames, generator) → a video in a prompt.
        types: Whether the model itself takes ``mm_token_type_ids``.
        even: Whether all videos of a batch have the same number of frames.
    """

    name: str
    classes: tuple[str, str]
    config: Callable[[int], dict]
    video: Callable[[int, torch.Generator], Video]
    types: bool = False
    even: bool = False

    @property
    def model_type(self) -> str:
        return getattr(transformers, self.classes[0]).model_type

    def of(self, config: dict, attention: str):
        """A model with a config that need not be the tested one."""
        made = getattr(transformers, self.classes[0])(**config, attn_implementation=attention)
        return getattr(transformers, self.classes[1])(made)


def text(model_type: str, layers: int, **more) -> dict:
    """:func:`random_model.text_config` with the model type, which not all classes know by themselves."""
    return {"model_type": model_type, **text_config(layers, **more)}


def rotary(**more) -> dict:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1], **more}}


def sliding_below(layers: int) -> dict:
    return {"layer_types": ["sliding_attention"] * (layers - 1) + ["full_attention"], "sliding_window": 16}


VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
WINDOWED = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 48}
WINDOWED |= {"fullatt_block_indexes": [1], "window_size": 112}
QWEN3_VISION = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 48}
QWEN3_VISION |= {"num_position_embeddings": 16, "initializer_range": 0.1}
SQUARE = {"image_size": 56, "patch_size": 14}


def internvl(layers: int, decoder: str, **more) -> dict:
    return {
        "text_config": text(decoder, layers, **more),
        "vision_config": {**VISION, "image_size": [56, 56], "patch_size": [14, 14]},
        "image_token_id": IMAGE,
        "tie_word_embeddings": False,
    }


def qwen3_vl(name: str, classes: tuple[str, str], **more) -> Tiny:
    """Deepstack: what the vision tower has seen after its first layer goes into the decoder's first one."""
    return Tiny(
        name,
        classes,
        lambda layers: {
            "text_config": text(f"{name}_text", layers, head_dim=8, **rotary(mrope_interleaved=True), **more),
            "vision_config": {**QWEN3_VISION, "deepstack_visual_indexes": [0]},
            **PLACEHOLDERS,
            **MARKS,
        },
        qwen3,
        types=True,
    )


def qwen3_5(name: str, classes: tuple[str, str], **more) -> Tiny:
    """Linear attention below, full attention in the last layer."""
    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 2}
    linear |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
    return Tiny(
        name,
        classes,
        lambda layers: {
            "text_config": text(f"{name}_text", layers, head_dim=8, partial_rotary_factor=1.0, **linear, **more)
            | {"layer_types": ["linear_attention"] * (layers - 1) + ["full_attention"]}
            | rotary(mrope_interleaved=True, partial_rotary_factor=1.0),
            "vision_config": QWEN3_VISION,
            **PLACEHOLDERS,
            **MARKS,
        },
        qwen3,
        types=True,
    )


TINY = {
    tiny.name: tiny
    for tiny in (
        Tiny(
            "qwen2_vl",
            ("Qwen2VLConfig", "Qwen2VLForConditionalGeneration"),
            lambda layers: {
                "text_config": text("qwen2_vl_text", layers, **rotary()),
                "vision_config": {"depth": 2, "embed_dim": 32, "hidden_size": 48, "num_heads": 2, "mlp_ratio": 2},
                **PLACEHOLDERS,
                **MARKS,
            },
            lambda frames, g: one_run(frames, grid(frames, PATCH_14, g), marks=True),
            types=True,
        ),
        Tiny(
            "qwen2_5_vl",
            ("Qwen2_5_VLConfig", "Qwen2_5_VLForConditionalGeneration"),
            lambda layers: {
                "text_config": text("qwen2_5_vl_text", layers, **rotary()),
                "vision_config": {**WINDOWED, "tokens_per_second": 2},
                **PLACEHOLDERS,
                **MARKS,
            },
            lambda frames, g: one_run(frames, grid(frames, PATCH_14, g), marks=True),
            types=True,
        ),
        qwen3_vl("qwen3_vl", ("Qwen3VLConfig", "Qwen3VLForConditionalGeneration")),
        qwen3_vl(
            "qwen3_vl_moe",
            ("Qwen3VLMoeConfig", "Qwen3VLMoeForConditionalGeneration"),
            moe_intermediate_size=32,
            num_experts=4,
            num_experts_per_tok=2,
        ),
        Tiny(
            "qwen2_5_omni",
            ("Qwen2_5OmniThinkerConfig", "Qwen2_5OmniThinkerForConditionalGeneration"),
            lambda layers: {
                "text_config": text("qwen2_5_omni_text", layers, **rotary()),
                "vision_config": WINDOWED,
                "audio_config": {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2}
                | {"encoder_ffn_dim": 32, "output_dim": 48},
                "audio_token_index": AUDIO,
                "audio_start_token_id": FRAME_START,
                "audio_end_token_id": FRAME_STOP,
                "pad_token_id": PAD,
                **INDICES,
                **MARKS,
            },
            omni,
        ),
        qwen3_5("qwen3_5", ("Qwen3_5Config", "Qwen3_5ForConditionalGeneration")),
        qwen3_5(
            "qwen3_5_moe",
            ("Qwen3_5MoeConfig", "Qwen3_5MoeForConditionalGeneration"),
            moe_intermediate_size=32,
            shared_expert_intermediate_size=32,
            num_experts=4,
            num_experts_per_tok=2,
        ),
        Tiny(
            "llava_onevision",
            ("LlavaOnevisionConfig", "LlavaOnevisionForConditionalGeneration"),
            lambda layers: {
                "text_config": text("qwen2", layers),
                "vision_config": {"model_type": "siglip_vision_model", **VISION, **SQUARE, "vision_use_head": False},
                **INDICES,
            },
            # A new line ends the video.
            lambda frames, g: one_run(frames, {"pixel_values_videos": pixels(frames, g)}, tokens=4 * frames + 1),
            even=True,
        ),
        Tiny(
            "llava_next_video",
            ("LlavaNextVideoConfig", "LlavaNextVideoForConditionalGeneration"),
            lambda layers: {
                "text_config": text("llama", layers),
                "vision_config": {"model_type": "clip_vision_model", **VISION, **SQUARE, "projection_dim": 32},
                **INDICES,
            },
            lambda frames, g: one_run(frames, {"pixel_values_videos": pixels(frames, g)}),
            even=True,
        ),
        Tiny(
            "internvl",
            ("InternVLConfig", "InternVLForConditionalGeneration"),
            lambda layers: internvl(layers, "qwen2"),
            lambda frames, g: run_a_frame(frames, {"pixel_values": pixels(frames, g)[0]}, IMAGE),
        ),
        Tiny(
            "internvl3_5",
            ("InternVLConfig", "InternVLForConditionalGeneration"),
            lambda layers: internvl(layers, "qwen3", head_dim=8),
            lambda frames, g: run_a_frame(frames, {"pixel_values": pixels(frames, g)[0]}, IMAGE),
        ),
        Tiny(
            "smolvlm",
            ("SmolVLMConfig", "SmolVLMForConditionalGeneration"),
            lambda layers: {
                "text_config": text("llama", layers),
                "vision_config": {**VISION, **SQUARE},
                "image_token_id": IMAGE,
                "pad_token_id": PAD,
                "tie_word_embeddings": False,
            },
            smolvlm,
            even=True,
        ),
        Tiny(
            "video_llama_3",
            ("VideoLlama3Config", "VideoLlama3ForConditionalGeneration"),
            lambda layers: {
                "text_config": text("qwen2", layers),
                "vision_config": {**VISION, "patch_size": 14},
                **PLACEHOLDERS,
            },
            video_llama,
        ),
        Tiny(
            "perception_lm",
            ("PerceptionLMConfig", "PerceptionLMForConditionalGeneration"),
            lambda layers: {
                "text_config": text("llama", layers),
                "vision_config": {
                    "model_type": "timm_wrapper",
                    "architecture": "vit_pe_core_tiny_patch16_384",
                    "do_pooling": False,
                    "num_classes": 0,
                    "initializer_range": 0.02,
                    "model_args": {"img_size": 64, "depth": 1, "embed_dim": 48, "num_heads": 3, "global_pool": ""}
                    | {"use_post_transformer_norm": False},
                },
                "vision_use_cls_token": True,
                "projector_pooling_ratio": 2,
                **PLACEHOLDERS,
            },
            lambda frames, g: one_run(frames, {"pixel_values_videos": pixels(frames, g, side=64)}),
            even=True,
        ),
        Tiny(
            "glm4v",
            ("Glm4vConfig", "Glm4vForConditionalGeneration"),
            lambda layers: {
                "text_config": text("glm4v_text", layers, **rotary(partial_rotary_factor=1.0)),
                "vision_config": {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
                | {"out_hidden_size": 48, "image_size": 56},
                "image_token_id": IMAGE,
                "video_token_id": UNUSED,
                "image_start_token_id": FRAME_START,
                "image_end_token_id": FRAME_STOP,
                "video_start_token_id": START,
                "video_end_token_id": STOP,
            },
            glm,
            types=True,
        ),
        Tiny(
            "gemma4",
            ("Gemma4Config", "Gemma4ForConditionalGeneration"),
            lambda layers: {
                "text_config": text("gemma4_text", layers, head_dim=8, global_head_dim=8, **sliding_below(layers))
                | {"final_logit_softcapping": 5.0, "hidden_size_per_layer_input": 0},
                "vision_config": {**VISION, "num_key_value_heads": 2, "head_dim": 16, "patch_size": 14}
                | {"pooling_kernel_size": 2, "position_embedding_size": 64},
                "audio_config": None,
                "boi_token_id": START,
                "eoi_token_id": STOP,
                "audio_token_id": AUDIO,
                "boa_token_id": FRAME_START,
                "eoa_token_index": FRAME_STOP,
                "tie_word_embeddings": False,
                **PLACEHOLDERS,
            },
            gemma,
            types=True,
            even=True,
        ),
        Tiny(
            "exaone4_5",
            ("Exaone4_5_Config", "Exaone4_5_ForConditionalGeneration"),
            lambda layers: {
                "text_config": text("exaone4", layers, **sliding_below(layers)),
                "vision_config": {**WINDOWED, "num_key_value_heads": 2, "initializer_range": 0.1},
                **PLACEHOLDERS,
            },
            lambda frames, g: one_run(frames, grid(frames, PATCH_14, g), marks=True),
        ),
    )
}
