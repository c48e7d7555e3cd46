"""Compiled decoding over a static cache: the ordinary step is one graph (transformers'), the due step another.

An autograd graph that outlives a call cannot be part of a compiled one. So the due step is written here as one
function of the decoder's layers, in which ``torch.func`` differentiates the last one. It costs what the inline step of
:mod:`lmms_eval_vreason.decoding.steering` does.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import CompileConfig, GenerationConfig, PreTrainedModel, StaticCache

from lmms_eval_vreason.decoding.config import VReason
from lmms_eval_vreason.decoding.entropy import (
    OBJECTIVE_GRADIENTS,
    POLICIES,
    entropy,
    entropy_of,
    log_probabilities,
    moving_average,
)
from lmms_eval_vreason.decoding.steering import Steering

# A static cache grows in steps of this many tokens, so that prompts of many lengths share one compiled graph.
CACHE_STEP = 1024


class DueStep(NamedTuple):
    """What one due step gives; all (batch,), but ``logits`` (batch, vocabulary), to choose the token from."""

    logits: Tensor
    entropy: Tensor
    ema: Tensor
    peak: Tensor
    alpha: Tensor
    active: Tensor
    entropy_change: Tensor | None
    grad_norm: Tensor
    healthy: Tensor


class _CachedTail:
    """Stands in for the cache when the last layer runs again: its token is cached already, so nothing is taken in."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def update(self, keys: Tensor, values: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        return self.keys, self.values


def due_step(
    steering: Steering,
    inputs: dict[str, Any],
    ema: Tensor,
    peak: Tensor,
    coin: Tensor,
    unfinished: Tensor,
) -> DueStep:
    """One token's forward, the move of ΔV and of the cache, and the refreshed logits.

    Args:
        inputs: As ``prepare_inputs_for_generation`` makes them for one token over a static cache.
        ema, peak: (batch,), the moving average and its peak before this token, nats.
        coin: (batch,), the random policy's α.
        unfinished: (batch,) bool.
    """
    method, layer, controller = steering.method, steering.cache_layers[0], steering.controllers[0]
    text_model, mask = steering.text_model, inputs["attention_mask"]
    hidden = text_model.embed_tokens(inputs["input_ids"])
    call = {
        "attention_mask": mask["full_attention"] if isinstance(mask, dict) else mask,
        "position_embeddings": text_model.rotary_emb(hidden, inputs["position_ids"][1:]),
        "position_ids": inputs["position_ids"][0],
        "use_cache": True,
    }
    for decoder_layer in text_model.layers[:-1]:
        hidden = decoder_layer(hidden, past_key_values=inputs["past_key_values"], **call)
    # For the sake of the token's key and value, which it caches; all else it computes is dropped from the graph.
    text_model.layers[-1](hidden, past_key_values=inputs["past_key_values"], **call)

    def tail(values: Tensor) -> Tensor:
        last = text_model.layers[-1](hidden, past_key_values=_CachedTail(layer.keys, values), **call)
        return steering.head(text_model.norm(last))[:, -1]

    before = alpha = active = grad_norm = first = None
    healthy = steering.healthy
    for step in range(method.steps_per_update):
        logits, pull_back = torch.func.vjp(tail, layer.values)
        log_p = log_probabilities(logits)
        h = entropy_of(log_p)
        if step == 0:
            first, before = logits, h
            ema, peak = moving_average(ema, peak, before, method.ema_decay)
            alpha = POLICIES[method.policy](ema, peak, coin)
            active = unfinished & (before >= method.min_entropy) & healthy
        weights = torch.where(active, alpha, 0.0)[:, None]
        gradient = OBJECTIVE_GRADIENTS[method.objective](log_p, h) * weights
        (cache_gradient,) = pull_back(gradient.to(logits.dtype))
        gradient = controller.gradient(cache_gradient)
        norm = controller.gradient_norm(gradient)
        grad_norm = norm if grad_norm is None else grad_norm
        sound = norm < torch.inf
        healthy, active = healthy & sound, active & sound
        controller.clear(gradient, ~sound)
        controller.step(gradient, active)
        controller.write(layer.values)
    refreshed = tail(layer.values) if method.refresh else None
    return DueStep(
        logits=first if refreshed is None else torch.where(active[:, None], refreshed, first),
        entropy=before,
        ema=ema,
        peak=peak,
        alpha=alpha,
        active=active,
        entropy_change=None if refreshed is None else entropy(refreshed) - before,
        grad_norm=grad_norm,
        healthy=healthy,
    )


def static_cache(model: PreTrainedModel, tokens: int) -> StaticCache:
    """A static cache for at least ``tokens`` positions."""
    length = -(-tokens // CACHE_STEP) * CACHE_STEP
    return StaticCache(config=model.config.get_text_config(decoder=True), max_cache_len=length)


def compiles(model: PreTrainedModel, method: VReason, model_kwargs: dict[str, Any], config: GenerationConfig) -> bool:
    """Whether this generation's steps are compiled: ``on``, or ``auto`` where transformers itself would compile."""
    if method.compile == "auto":
        return model._valid_auto_compile_criteria(model_kwargs, config)
    return method.compile == "on"


def compiled_steps(
    model: PreTrainedModel, method: VReason, config: GenerationConfig
) -> tuple[Callable[..., Any], Callable[..., DueStep] | None]:
    """The ordinary step (transformers' compiled forward) and the due step, compiled.

    The due step is None where it has to run eagerly: with several ``layers``, or ``head_topk``.
    """
    settings = config.compile_config
    if settings is None:
        settings = CompileConfig(fullgraph=True, mode="reduce-overhead" if model.device.type == "cuda" else "default")
    due = None
    if method.layers == 1 and not method.head_topk:
        due = _compiled_due_step(tuple(settings.to_dict().items()))
    return model.get_compiled_call(settings), due


@cache
def _compiled_due_step(settings: tuple[tuple[str, Any], ...]) -> Callable[..., DueStep]:
    return torch.compile(due_step, **dict(settings))
