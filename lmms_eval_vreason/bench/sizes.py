"""The benchmark's models: Qwen2.5-VL's published text shapes and two small ones, with random weights."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, StaticCache
from transformers.initialization import no_init_weights

from lmms_eval_vreason.engines.hf.upstream import CACHE

VIDEO_TOKEN = 1
# A period that divides no width, so that no two rows of a weight are alike.
_PATTERN = 1_048_573
_SHIFT = 7919


@dataclass(frozen=True)
class Shape:
    """The text decoder of a Qwen2.5-VL model. The vision tower plays no part while tokens are decoded."""

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    intermediate_size: int
    vocabulary: int
    tied: bool = False

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.heads

    def layer_weights(self) -> tuple[int, int]:
        """Weights of one layer: (query, key and value projections; output projection and MLP)."""
        width, kv_width = self.hidden_size, self.kv_heads * self.head_dim
        return width * (width + 2 * kv_width), width * width + 3 * width * self.intermediate_size

    def head_weights(self) -> int:
        return self.hidden_size * self.vocabulary

    def weights(self) -> int:
        """All weights that one decoded token reads."""
        return self.layers * sum(self.layer_weights()) + self.head_weights()

    def cut(self, layers: int | None) -> "Shape":
        """The shape with only its last ``layers`` layers. Raises ValueError where it has fewer."""
        if layers is None:
            return self
        if not 1 <= layers <= self.layers:
            raise ValueError(f"--layers {layers}: this shape has 1 to {self.layers} layers")
        return replace(self, layers=layers)


# `narrow` has the 7B model's 28 layers, each so small that a token costs what calling its operations costs.
# 3b to 72b are the published configurations. `medium` has the 7B model's 28 layers, and as there its last layer and
# head are a tenth of the weights, so that ratios carry over; a token takes some ten milliseconds on one CPU thread.
SHAPES: dict[str, Shape] = {
    "tiny": Shape(128, 4, 4, 2, 384, 2048),
    "narrow": Shape(64, 28, 4, 2, 192, 2048),
    "medium": Shape(512, 28, 8, 2, 2176, 16896),
    "3b": Shape(2048, 36, 16, 2, 11008, 151936, tied=True),
    "7b": Shape(3584, 28, 28, 4, 18944, 152064),
    "32b": Shape(5120, 64, 40, 8, 27648, 152064),
    "72b": Shape(8192, 80, 64, 8, 29568, 152064),
}


def random_model(shape: Shape, *, device: str, dtype: torch.dtype, attention: str, seed: int = 0):
    """A Qwen2.5-VL model of this shape, in evaluation mode; its weights are one short random pattern, repeated."""
    eighth = shape.head_dim // 8
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": shape.hidden_size,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "intermediate_size": shape.intermediate_size,
            "vocab_size": shape.vocabulary,
            "max_position_embeddings": 131072,
            "tie_word_embeddings": shape.tied,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [eighth, eighth * 3 // 2, eighth * 3 // 2],
            },
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": 0,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "num_heads": 1,
            "intermediate_size": 16,
            "out_hidden_size": shape.hidden_size,
            "fullatt_block_indexes": [0],
        },
        tie_word_embeddings=shape.tied,
        video_token_id=VIDEO_TOKEN,
        image_token_id=2,
        vision_start_token_id=3,
        vision_end_token_id=4,
        attn_implementation=attention,
        dtype=dtype,
    )
    model = with_random_weights(config, device=device, dtype=dtype, seed=seed)
    model.generation_config.pad_token_id = 0
    return model


def with_random_weights(config: Qwen2_5_VLConfig, *, device: str, dtype: torch.dtype, seed: int = 0):
    """The model of a config, in evaluation mode; its weights are one short random pattern, repeated."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with no_init_weights(), torch.device(device):
            model = Qwen2_5_VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    if config.tie_word_embeddings:
        model.tie_weights()
    _fill(model, seed)
    return model.eval()


@torch.no_grad()
def _fill(model: torch.nn.Module, seed: int) -> None:
    pattern = torch.randn(_PATTERN, generator=torch.Generator().manual_seed(seed))
    for number, (name, parameter) in enumerate(model.named_parameters()):
        if parameter.dim() == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        # Shifted, so that layers are not alike, and untied head and embeddings don't make every token follow itself.
        scaled = (pattern.roll(number * _SHIFT) * parameter.shape[-1] ** -0.5).to(parameter.device, parameter.dtype)
        for part in parameter.view(-1).split(_PATTERN):
            part.copy_(scaled[: len(part)])


@dataclass(frozen=True)
class Prompt:
    """A prompt that is all in the cache but for its last token: decoding starts at once, whatever the shape costs.

    A static cache is kept in ``kept`` and filled again for the next run, as transformers itself keeps it: compiled
    steps are recorded for one place in memory. Clear it to release it.
    """

    input_ids: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    kept: dict[int, StaticCache] = field(default_factory=dict)

    @classmethod
    def random(cls, shape: Shape, model, *, batch: int, video_tokens: int, text_tokens: int = 64) -> "Prompt":
        """``video_tokens`` between two halves of text, and random keys and values for them in every layer."""
        generator = torch.Generator(model.device).manual_seed(0)
        ids = torch.full((batch, video_tokens + text_tokens), VIDEO_TOKEN, device=model.device)
        for part in (ids[:, : text_tokens // 2], ids[:, ids.shape[1] - (text_tokens - text_tokens // 2) :]):
            part.random_(8, shape.vocabulary, generator=generator)
        size = (batch, shape.kv_heads, ids.shape[1] - 1, shape.head_dim)

        def states() -> list[Tensor]:
            return [
                torch.randn(size, generator=generator, device=model.device, dtype=model.dtype)
                for _ in range(shape.layers)
            ]

        return cls(ids, states(), states())

    def inputs(self, model, *, kind: str, new_tokens: int) -> dict:
        """Arguments of ``generate``, with a filled cache (``dynamic`` or ``static``)."""
        config, length = model.config.get_text_config(), self.input_ids.shape[1] + new_tokens
        cache: Cache = DynamicCache(config=config)
        if kind == "static":
            cache = self.kept.setdefault(length, StaticCache(config=config, max_cache_len=length))
            cache.reset()
        for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            cache.update(keys.clone(), values.clone(), layer)
        return {
            "input_ids": self.input_ids,
            "attention_mask": torch.ones_like(self.input_ids),
            CACHE: cache,
            "max_new_tokens": new_tokens,
            "do_sample": False,
            "eos_token_id": None,
        }
