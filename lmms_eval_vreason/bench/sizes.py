"""The benchmark's models: Qwen2.5-VL's published text decoders and three small ones, with random weights."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, Cache, DynamicCache, Qwen2_5_VLConfig, StaticCache
from transformers.initialization import no_init_weights

from lmms_eval_vreason.engines.hf.upstream import CACHE
from lmms_eval_vreason.shapes.architecture import Sizes, build_config
from lmms_eval_vreason.shapes.vocabulary import SPECIAL_TOKENS, build_tokenizer

VIDEO_TOKEN = SPECIAL_TOKENS.index("<|video_pad|>")
# A period that divides no width, so that no two rows of a weight are alike.
_PATTERN = 1_048_573
_SHIFT = 7919


_TOWER: dict[str, Any] = {"vision_layers": 32, "vision_hidden_size": 1280, "vision_heads": 16}
_TOWER |= {"vision_intermediate_size": 3420, "full_attention_layers": (7, 15, 23, 31)}
# `narrow` has the 7B model's 28 layers, each so small that a token costs what launching its operations costs.
# `medium` has the same 28 layers, and its last layer and head are a tenth of the weights, as in the 7B model, so that
# ratios carry over; a token takes some ten milliseconds on one CPU thread. 3b to 72b are the published configurations.
SHAPES: dict[str, Sizes] = {
    "tiny": Sizes(128, 4, 4, 2, 384, 2048, False),
    "narrow": Sizes(64, 28, 4, 2, 192, 2048, False),
    "medium": Sizes(512, 28, 8, 2, 2176, 16896, False),
    "3b": Sizes(2048, 36, 16, 2, 11008, 151936, True, **_TOWER),
    "7b": Sizes(3584, 28, 28, 4, 18944, 152064, False, **_TOWER),
    "32b": Sizes(5120, 64, 40, 8, 27648, 152064, False, **_TOWER),
    "72b": Sizes(8192, 80, 64, 8, 29568, 152064, False, **_TOWER),
}


def shape_of(name: str, layers: int | None) -> Sizes:
    """A shape, with only its last ``layers`` layers if they are given. Raises ValueError if it has fewer."""
    whole = SHAPES[name]
    if layers is not None and not 1 <= layers <= whole.layers:
        raise ValueError(f"--layers {layers}: this shape has 1 to {whole.layers} layers")
    return replace(whole, layers=layers or whole.layers)


def random_model(shape: Sizes, *, device: str, dtype: torch.dtype, attention: str) -> Any:
    """A Qwen2.5-VL model of this shape with :func:`with_random_weights`; ``attention`` is ``attn_implementation``."""
    config = build_config(build_tokenizer(), shape)
    config._attn_implementation = attention
    model = with_random_weights(config, device=device, dtype=dtype)
    model.generation_config.pad_token_id = config.get_text_config().pad_token_id
    return model


def with_random_weights(config: Qwen2_5_VLConfig, *, device: str, dtype: torch.dtype) -> Any:
    """The model of a config, in evaluation mode; its weights are one short random pattern, repeated."""
    with no_init_weights(), torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    if config.tie_word_embeddings:
        model.tie_weights()
    _fill(model)
    # Random logits of this spread have a mean entropy of 1.4 nats whatever the vocabulary, about a trained model's. A
    # flat distribution would cost more: all rows of the head would take part in an update.
    spread = 2 * math.sqrt(2 * math.log(config.get_text_config().vocab_size))
    torch.nn.init.constant_(model.model.language_model.norm.weight, spread)
    return model.eval()


@torch.no_grad()
def _fill(model: Any) -> None:
    pattern = torch.randn(_PATTERN, generator=torch.Generator().manual_seed(0))
    for number, (name, parameter) in enumerate(model.named_parameters()):
        if parameter.dim() == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        # Shifted, so that layers differ, and so that an untied head does not make every token follow itself.
        scaled = (pattern.roll(number * _SHIFT) * parameter.shape[-1] ** -0.5).to(parameter.device, parameter.dtype)
        for part in parameter.view(-1).split(_PATTERN):
            part.copy_(scaled[: len(part)])


@dataclass(frozen=True)
class Prompt:
    """A prompt whose tokens are all cached but the last: decoding starts at once, whatever the shape costs.

    Attributes:
        input_ids: (batch, tokens).
        keys, values: One tensor a layer, each (batch, kv_heads, tokens - 1, head_dim).
        kept: Length → static cache. It is filled again for the next run, as transformers itself keeps it, because
            compiled steps are recorded for one place in memory. Clear it to release the memory.
    """

    input_ids: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    kept: dict[int, StaticCache] = field(default_factory=dict)

    @classmethod
    def random(cls, shape: Sizes, model: Any, *, batch: int, video_tokens: int, text_tokens: int = 64) -> "Prompt":
        """``video_tokens`` between two halves of text, with random keys and values in every layer."""
        generator = torch.Generator(model.device).manual_seed(0)
        ids = torch.full((batch, video_tokens + text_tokens), VIDEO_TOKEN, device=model.device)
        for part in (ids[:, : text_tokens // 2], ids[:, ids.shape[1] - (text_tokens - text_tokens // 2) :]):
            part.random_(len(SPECIAL_TOKENS), shape.vocabulary, generator=generator)
        size = (batch, shape.kv_heads, ids.shape[1] - 1, shape.head_dim)

        place: dict[str, Any] = {"generator": generator, "device": model.device, "dtype": model.dtype}
        keys, values = ([torch.randn(size, **place) for _ in range(shape.layers)] for _ in range(2))
        return cls(ids, keys, values)

    def inputs(self, model: Any, *, kind: str, new_tokens: int) -> dict[str, Any]:
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
            # Given, because there are no grids to compute them from; the same for every variant.
            "position_ids": torch.arange(length - new_tokens, device=model.device).expand(4, *self.input_ids.shape),
            CACHE: cache,
            **{"max_new_tokens": new_tokens, "do_sample": False, "eos_token_id": None},
        }
