"""The model families that the method is tested on, and where in a model an engine finds what it steers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

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
        video_token: The config's name for the id of the tokens that stand for video.
    """

    model_type: str
    video_token: str = "video_token_id"

    def video_mask(self, model: Any, input_ids: Tensor) -> Tensor:
        """(batch, tokens) bool, the video tokens of ``input_ids`` (batch, tokens)."""
        mask: Tensor = input_ids == getattr(model.config, self.video_token)
        return mask


FAMILIES: dict[str, Family] = {family.model_type: family for family in (Family("qwen2_vl"), Family("qwen2_5_vl"))}


class Tail:
    """A model's last decoder layer, and all that follows it."""

    def __init__(self, model: Any) -> None:
        """Raises TypeError for a model that cannot be steered: see :func:`family_of`."""
        self.family = family_of(model)
        config, decoder = model.config.get_text_config(decoder=True), model.get_decoder()
        self.layer: Any = decoder.layers[-1]
        self.norm: nn.Module = decoder.norm
        self.head: nn.Linear = model.get_output_embeddings()
        settings = [(name, getattr(config, name, None)) for name in AFTER_HEAD]
        self._after: list[tuple[Any, Any, float]] = [(*AFTER_HEAD[name], value) for name, value in settings if value]

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


def family_of(model: Any) -> Family:
    """The family of ``model``. Raises TypeError where there is none, or its last layer or head is of another kind."""
    family = FAMILIES.get(model.config.model_type)
    if family is None:
        raise TypeError(
            f"V-Reason steers {' and '.join(sorted(FAMILIES))} models, not {type(model).__name__} "
            f"({model.config.model_type}): load a checkpoint of a tested family"
        )
    config = model.config.get_text_config(decoder=True)
    kind = (getattr(config, "layer_types", None) or ["full_attention"])[-1]
    if kind != "full_attention":
        raise TypeError(f"V-Reason needs full attention in the last decoder layer; this model has {kind} there")
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or not head.weight.is_floating_point():
        raise TypeError(f"V-Reason needs a plain linear head; this model's is a {type(head).__name__} (quantised?)")
    if sum(getattr(config, name, None) not in (None, 0) for name in AFTER_HEAD) > 1:
        raise TypeError(
            f"V-Reason knows one operation after the head; this model has several of {', '.join(AFTER_HEAD)}"
        )
    return family
