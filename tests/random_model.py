"""Random models of each family in memory and inputs for them: the decoding core's tests need no files."""

from inspect import signature

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from lmms_eval_vreason import VReason
from lmms_eval_vreason.engines.hf.generation import frozen
from lmms_eval_vreason.engines.hf.loop import DecodingLoop
from lmms_eval_vreason.families.positions import trained_positions
from lmms_eval_vreason.method.trace import COLUMNS

# Matrices this small are slower on two threads than on one.
torch.set_num_threads(1)

VISION_START, VISION_END, VIDEO, IMAGE, PAD, END = 60, 61, 62, 63, 64, 65
VOCABULARY = 96
PATCH = 3 * 2 * 14 * 14


VISION = {
    "qwen2_5_vl": {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 48,
        "fullatt_block_indexes": [1],
        "window_size": 112,
        "tokens_per_second": 2,
    },
    "qwen2_vl": {"depth": 2, "embed_dim": 32, "hidden_size": 48, "num_heads": 2, "mlp_ratio": 2},
}
CLASSES = {
    "qwen2_5_vl": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
    "qwen2_vl": (Qwen2VLConfig, Qwen2VLForConditionalGeneration),
}
FAMILIES = tuple(CLASSES)


def text_config(layers: int, **more) -> dict:
    """A text config; ``initializer_range`` gives next-token entropies of about 0.5 to 4 nats."""
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": END,
        "pad_token_id": PAD,
        "initializer_range": 0.25,
        **more,
    }


def random_model(
    *,
    layers: int = 3,
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    seed: int = 0,
    family: str = "qwen2_5_vl",
):
    """A model whose next-token entropies spread over about 0.5 to 4 nats, so that every policy has something to do."""
    config_class, model_class = CLASSES[family]
    config = config_class(
        text_config=text_config(
            layers, rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]}
        ),
        vision_config=VISION[family],
        video_token_id=VIDEO,
        image_token_id=IMAGE,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        attn_implementation=attention,
    )
    torch.manual_seed(seed)
    model = model_class(config).to(dtype).eval()
    model.generation_config.eos_token_id = END
    model.generation_config.pad_token_id = PAD
    return model


def prompt(*, videos=((2, 4, 4),), images=(), text: int = 6, seed: int = 0) -> dict:
    """One prompt: its token ids, token types and pixel patches. Grids are (time, height, width) in patches."""
    generator = torch.Generator().manual_seed(seed)
    ids, types = [], []
    for token, kind, grids in ((IMAGE, 1, images), (VIDEO, 2, videos)):
        for t, h, w in grids:
            count = t * h * w // 4
            ids += [VISION_START, *[token] * count, VISION_END]
            types += [0, *[kind] * count, 0]
    words = torch.randint(0, 60, (text,), generator=generator).tolist()

    def patches(grids):
        return torch.randn(sum(t * h * w for t, h, w in grids), PATCH, generator=generator)

    return {
        "ids": ids + words,
        "types": types + [0] * text,
        "images": list(images),
        "videos": list(videos),
        "pixel_values": patches(images),
        "pixel_values_videos": patches(videos),
    }


def batch(
    prompts: list[dict], dtype: torch.dtype = torch.float32, family: str = "qwen2_5_vl"
) -> dict[str, torch.Tensor]:
    """Keyword arguments of ``model.generate`` for the prompts, padded on the left."""
    length = max(len(p["ids"]) for p in prompts)
    pads = [length - len(p["ids"]) for p in prompts]
    inputs = {
        "input_ids": torch.tensor([[PAD] * n + p["ids"] for n, p in zip(pads, prompts, strict=True)]),
        "attention_mask": torch.tensor([[0] * n + [1] * (length - n) for n in pads]),
        "mm_token_type_ids": torch.tensor([[0] * n + p["types"] for n, p in zip(pads, prompts, strict=True)]),
    }
    for kind, pixels, grid in (
        ("images", "pixel_values", "image_grid_thw"),
        ("videos", "pixel_values_videos", "video_grid_thw"),
    ):
        grids = [g for p in prompts for g in p[kind]]
        if grids:
            inputs[pixels] = torch.cat([p[pixels] for p in prompts]).to(dtype)
            inputs[grid] = torch.tensor(grids)
    if "video_grid_thw" in inputs and family == "qwen2_5_vl":
        inputs["second_per_grid_ts"] = torch.ones(len(inputs["video_grid_thw"]))
    return inputs


def placed(model, inputs: dict) -> dict:
    """``inputs`` with the trained positions that ``method.generate`` gives them, for ``model.generate``."""
    return {**inputs, "position_ids": trained_positions(model.config, **inputs)}


def steer(model, method: VReason, *, positions: str = "trained", **kwargs) -> tuple[Tensor, DecodingLoop]:
    """``method.generate``, but for the loop, whose ``steering`` still holds ΔV."""
    trained = positions == "trained" and "position_ids" not in kwargs
    kwargs = placed(model, kwargs) if trained else kwargs
    types = kwargs.get("mm_token_type_ids")
    if "mm_token_type_ids" not in signature(model.forward).parameters:
        kwargs.pop("mm_token_type_ids", None)
    loop = DecodingLoop(method)
    loop.trained_positions, loop.token_types = trained, types
    with frozen(model):
        sequences = model.generate(custom_generate=loop, **kwargs)
    return sequences, loop


def forced_run(model, method: VReason, samples: list[dict], count: int) -> DecodingLoop:
    """The loop after ``count`` tokens that :func:`forced_tokens` chose."""
    settings = {"logits_processor": LogitsProcessorList([Forced(forced_tokens(len(samples), count))])}
    return steer(model, method, **batch(samples), max_new_tokens=count, **settings)[1]


def with_double_norms(model):
    """transformers' RMSNorm rounds to float32; exact gradients in float64 need one that does not."""
    for module in list(model.get_decoder().modules()):
        for name, child in module.named_children():
            if type(child).__name__.endswith("RMSNorm"):
                setattr(module, name, DoubleNorm(child))
    return model


class DoubleNorm(nn.Module):
    """A family's RMSNorm in the precision of its input. Some have no weight, some one that counts from 1."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.eps = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
        weight = getattr(norm, "weight", None)
        offset = type(norm).__name__.startswith("Qwen3_5") and not type(norm).__name__.endswith("Gated")
        self.scale = None if weight is None else weight.detach() + offset

    def forward(self, x: Tensor) -> Tensor:
        normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return normed if self.scale is None else normed * self.scale


def values_scaled(model, s: float):
    """The last layer's values times ``s``, its output projection by ``s``: the same function with other values."""
    attention = model.get_decoder().layers[-1].self_attn
    with torch.no_grad():
        attention.v_proj.weight.mul_(s)
        if attention.v_proj.bias is not None:
            attention.v_proj.bias.mul_(s)
        attention.o_proj.weight.div_(s)
    return model


def moved_at_its_norm(values, delta, norm):
    """V + ΔV at the norm of V; (tokens, kv_heads, head_dim), written apart from the package."""
    moved = values + delta
    if norm == "none":
        return moved
    axes = {"head": (2,), "token": (1, 2), "cache": (0, 1, 2)}[norm]
    scale = (values.square().sum(axes, keepdim=True) / moved.square().sum(axes, keepdim=True)).sqrt()
    return moved * scale


def assert_same_run(results) -> None:
    """The same tokens, entropies, changes and shifts in all of the ``results`` of ``generate``."""
    first, *others = results
    for other in others:
        assert torch.equal(first.sequences, other.sequences)
        for ours, theirs in zip(first.traces, other.traces, strict=True):
            assert ours.updates == theirs.updates > 0
            for name in COLUMNS:
                assert np.allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-5, atol=1e-6, equal_nan=True), (
                    name
                )


def at_video(shift, states: Tensor, row: int) -> Tensor:
    """(tokens, kv_heads, head_dim) of one sample at its video tokens, from ``states`` in ΔV's shape or the cache's."""
    if states.shape[2] != shift.delta.shape[2]:
        states = shift.window(states)
    return states[row].transpose(0, 1)[shift.video[row, 0, 0]]


def packed(shift, states: Tensor) -> Tensor:
    """:func:`at_video` of all samples, one after another."""
    return torch.cat([at_video(shift, states, row) for row in range(len(states))])


class Forced(LogitsProcessor):
    """Makes ``generate`` choose the given tokens, (batch, new tokens), and notes the logits it was shown."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens, self.logits = tokens, []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = self.tokens[:, len(self.logits)]
        self.logits.append(scores.clone())
        return torch.full_like(scores, -1e9).scatter_(1, chosen[:, None], 0.0)


def forced_tokens(rows: int, count: int, seed: int = 0) -> Tensor:
    """Random words, (rows, count): none of them ends the text. A longer draw begins with a shorter one's words."""
    return torch.randint(0, 60, (count, rows), generator=torch.Generator().manual_seed(seed)).T.contiguous()
