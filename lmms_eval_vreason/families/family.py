"""The model families that the method is tested on, and where in a model an engine finds what it steers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import DynamicCache

TOKEN_TYPES = "mm_token_type_ids"

# What a model does to its head's output, by the setting of its text config that asks for it:
# (logits, setting) → logits, and (those logits, setting) → its derivative.
AFTER_HEAD: dict[str, tuple[Callable[[Tensor, float], Tensor], Callable[[Tensor, float], Tensor | float]]] = {
    "final_logit_softcapping": (lambda x, cap: torch.tanh(x / cap) * cap, lambda y, cap: 1 - (y / cap) ** 2),
    "logits_scaling": (lambda x, scale: x / scale, lambda y, scale: 1 / scale),
    "logit_scale": (lambda x, scale: x * scale, lambda y, scale: scale),
}


@dataclass(frozen=True)
class Family:
    """One kind of model, by its config's ``model_type``.

    Attributes:
        positions: ``trained``: multimodal ones, which :mod:`lmms_eval_vreason.families.positions` computes because
            transformers places text after a video elsewhere. ``multimodal``: transformers computes them by the same
            rule. ``plain``: one after the other. ``columns``: plain, and the model counts the columns of its cache
            whatever ``position_ids`` say.
        own_video_token: Whether the config's ``video_token_id`` stands for video. Otherwise videos and images share
            ``image_token_id``, and only ``mm_token_type_ids`` tell them apart.
        open_end: Why a prompt cannot be cut after its last video, with the tokens on both sides the same as in one
            piece; empty where it can.
    """

    model_type: str
    positions: Literal["trained", "multimodal", "plain", "columns"] = "plain"
    own_video_token: bool = True
    open_end: str = ""

    @property
    def multimodal(self) -> bool:
        """Whether a position has a time, a row and a column."""
        return self.positions in ("trained", "multimodal")

    def video_mask(self, model: Any, input_ids: Tensor, token_types: Tensor | None = None) -> Tensor:
        """(batch, tokens) bool, the video tokens of ``input_ids`` (batch, tokens).

        Args:
            token_types: (batch, tokens), ``mm_token_type_ids``: 2 for video.

        Raises:
            ValueError: They are missing where only they tell a video from an image.
        """
        if self.own_video_token:
            mask: Tensor = input_ids == model.config.video_token_id
            return mask
        placeholders: Tensor = input_ids == model.config.image_token_id
        if token_types is None and placeholders.any():
            raise ValueError(
                f"in {self.model_type} prompts images and videos share a placeholder: pass mm_token_type_ids "
                "(batch, tokens), 2 for each token of a video, 1 for an image's, 0 elsewhere"
            )
        return placeholders if token_types is None else placeholders & (token_types == 2)


FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family("qwen2_vl", "trained"),
        Family("qwen2_5_vl", "trained"),
        Family("qwen3_vl", "multimodal"),
        Family("qwen3_vl_moe", "multimodal"),
        Family("qwen2_5_omni_thinker", "multimodal"),
        Family("qwen3_5", "multimodal"),
        Family("qwen3_5_moe", "multimodal"),
        Family("glm4v", "multimodal", own_video_token=False),
        Family("internvl", own_video_token=False),
        Family(
            "smolvlm", own_video_token=False, open_end="its processor ends a video with text, which tokens may join"
        ),
        Family("llava_onevision"),
        Family("llava_next_video", open_end="its tokenizer marks the first word of a text"),
        Family("video_llama_3"),
        Family("perception_lm"),
        Family("gemma4"),
        Family("exaone4_5", "columns"),
    )
}


class VocabularyHead:
    """The head, and what a model does to its output."""

    def __init__(self, head: nn.Linear, after: Sequence[tuple[Any, Any, float]] = ()) -> None:
        """Args: ``after``, (function, derivative, setting) of what follows it, as in :data:`AFTER_HEAD`."""
        self.head, self._after = head, after

    def rows(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """The head's rows of ``tokens`` (batch, n): weights (batch, n, hidden_size), biases (batch, n) or None."""
        tokens = tokens.to(self.head.weight.device)
        bias = None if self.head.bias is None else self.head.bias[tokens]
        return nn.functional.embedding(tokens, self.head.weight), bias

    def logits(self, hidden: Tensor, rows: tuple[Tensor, Tensor | None] | None = None) -> Tensor:
        """(batch, vocabulary), or (batch, n) of ``rows``, from the final norm's output, (batch, hidden_size)."""
        if rows is None:
            logits: Tensor = self.head(hidden)
        else:
            weight, bias = rows
            logits = (weight @ hidden[:, :, None].to(weight.device))[:, :, 0]
            logits = logits if bias is None else logits + bias
        for function, _, value in self._after:
            logits = function(logits, value)
        return logits

    def before_head(self, gradient: Tensor, logits: Tensor, rows: tuple[Tensor, Tensor | None] | None = None) -> Tensor:
        """The gradient in the final norm's output, (batch, hidden_size), from that in ``logits``, in closed form.

        Args:
            gradient, logits: (batch, vocabulary), or (batch, n) of ``rows``; the latter as :meth:`logits` gave them.
        """
        for _, derivative, value in self._after:
            gradient = gradient * derivative(logits, value)
        weight = self.head.weight if rows is None else rows[0]
        gradient = gradient.to(weight)
        return gradient @ weight if rows is None else (gradient[:, None] @ weight)[:, 0]


class Tail(VocabularyHead):
    """A model's last decoder layer, and all that follows it."""

    def __init__(self, model: Any) -> None:
        """Raises TypeError for a model that cannot be steered: see :func:`family_of`."""
        self.family = family_of(model)
        config, decoder = model.config.get_text_config(decoder=True), model.get_decoder()
        self.layer: Any = decoder.layers[-1]
        self.norm: nn.Module = decoder.norm
        settings = [(name, getattr(config, name, None)) for name in AFTER_HEAD]
        super().__init__(
            model.get_output_embeddings(), [(*AFTER_HEAD[name], value) for name, value in settings if value]
        )


def family_of(model: Any) -> Family:
    """The family of ``model``. Raises TypeError where there is none, or its last layer or head is of another kind."""
    family = FAMILIES.get(model.config.model_type)
    if family is None:
        raise TypeError(
            f"V-Reason steers {', '.join(sorted(FAMILIES))} models, not {type(model).__name__} "
            f"({model.config.model_type}): load a checkpoint of a tested family"
        )
    for fault in (_fault_of_layer(model), _fault_of_head(model)):
        if fault:
            raise TypeError(f"V-Reason cannot steer this {family.model_type} model: {fault}")
    return family


def check_columns(model: Any, feature: str) -> None:
    """Raises TypeError unless tokens can leave and enter the cache of every layer, as ``feature`` needs."""
    family, kinds = family_of(model), _kinds(model)
    others = sorted(set(kinds) - {"full_attention"})
    if others:
        raise TypeError(f"{feature} needs the keys and values of every token in every layer: this model has {others}")
    if family.positions == "columns":
        raise TypeError(f"{feature} moves tokens in the cache, whose columns a {family.model_type} model counts")


def video_tower(model: Any) -> nn.Module:
    """What turns a video's pixels into features."""
    tower: nn.Module = model.get_encoder(modality="video")
    return tower


def take_token_types(model: Any, kwargs: dict[str, Any]) -> Tensor | None:
    """``mm_token_type_ids`` among ``kwargs``, which lose them where the model's forward does not know them."""
    known = TOKEN_TYPES in signature(model.forward).parameters
    types: Tensor | None = kwargs.get(TOKEN_TYPES) if known else kwargs.pop(TOKEN_TYPES, None)
    return types


def why_not_shared(model: Any) -> str:
    """Why several prompts of ``model`` cannot share the prefill of their prefix; empty where they can."""
    try:
        check_columns(model, "a shared prefix")
    except TypeError as error:
        return str(error)
    return family_of(model).open_end


def _kinds(model: Any) -> list[str]:
    """Each decoder layer's kind: as the config names it, else by what transformers caches for it."""
    config = model.config.get_text_config(decoder=True)
    layers = getattr(config, "layer_types", None) or [
        type(layer).__name__ for layer in DynamicCache(config=config).layers
    ]
    return ["full_attention" if kind == "DynamicLayer" else kind for kind in layers]


def _fault_of_layer(model: Any) -> str:
    config = model.config.get_text_config(decoder=True)
    if getattr(config, "kv_lora_rank", None):
        return "it caches latents (multi-head latent attention), no values of tokens"
    if getattr(config, "num_kv_shared_layers", 0):
        return "its last layers share the keys and values of an earlier one"
    kind = _kinds(model)[-1]
    return "" if kind == "full_attention" else f"the last decoder layer needs full attention; this model's has {kind}"


def _fault_of_head(model: Any) -> str:
    head, config = model.get_output_embeddings(), model.config.get_text_config(decoder=True)
    if type(head) is not nn.Linear or not head.weight.is_floating_point():
        return f"it needs a plain linear head; this model's is a {type(head).__name__} (quantised?)"
    if head.weight.shape[0] != config.vocab_size:
        return (
            f"its head has {head.weight.shape[0]} rows for a vocabulary of {config.vocab_size} (split between devices?)"
        )
    if sum(getattr(config, name, None) not in (None, 0) for name in AFTER_HEAD) > 1:
        return f"one operation after the head is known, and its config asks for several of {', '.join(AFTER_HEAD)}"
    return ""
