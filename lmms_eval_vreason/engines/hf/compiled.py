"""Compiled decoding over a static cache: the ordinary step is one graph (transformers'), the due step another.

An autograd graph that outlives a call cannot be part of a compiled one. So the due step is written here as one
function of the decoder's layers, in which ``torch.func`` differentiates the last one. It costs what the inline step of
:mod:`lmms_eval_vreason.engines.hf.steering` does. Nor can a graph that serves every prompt know which samples move and
where their video tokens lie: here these are tensors, where the inline step has numbers.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import CompileConfig, GenerationConfig, PreTrainedModel, StaticCache

from lmms_eval_vreason.engines.hf.steering import Steering
from lmms_eval_vreason.engines.hf.upstream import CACHE, compiles_by_itself, mark_dynamic
from lmms_eval_vreason.method.config import VReason
from lmms_eval_vreason.method.controller import Adam, moved_values, rounded, shift_gradient
from lmms_eval_vreason.method.entropy import (
    OBJECTIVE_GRADIENTS,
    POLICIES,
    entropy,
    entropy_of,
    log_probabilities,
    moving_average,
)

# A static cache grows in steps of this many tokens, so that prompts of many lengths share one compiled graph.
CACHE_STEP = 1024


class DueStep(NamedTuple):
    """What one due step gives; all (batch,), but ``logits`` (batch, vocabulary), to choose the token from.

    ``refreshed`` is the entropy after the update.
    """

    logits: Tensor
    entropy: Tensor
    ema: Tensor
    peak: Tensor
    alpha: Tensor
    active: Tensor
    refreshed: Tensor | None
    grad_norm: Tensor
    healthy: Tensor


class _CachedTail:
    """Stands in for the cache when the last layer runs again: its token is cached already, so nothing is taken in."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def update(self, keys: Tensor, values: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        return self.keys, self.values


class GraphController:
    """A :class:`ValueCacheController` for a graph: its state, moved by the same operations whatever the prompt.

    Attributes:
        healthy: (batch,) bool, as the steering's.
    """

    def __init__(self, steering: Steering) -> None:
        (controller,) = steering.controllers
        sizes = torch.tensor(controller.sizes)
        device = controller.delta.device
        self.healthy = torch.tensor(steering.healthy, device=device)
        self.controller, self.batch = controller, len(sizes)
        self.original, self.delta, self.noise = controller.original, controller.delta, controller.noise
        self.kv_heads, self.head_dim = self.delta.shape[1:]
        self.rows = torch.arange(self.batch).repeat_interleave(sizes).to(device)
        self.columns = torch.cat([torch.arange(start, end) for _, start, end in controller.runs]).to(device)
        self.heads = torch.arange(self.kv_heads, device=device)
        self.betas = torch.tensor([[beta] for beta in Adam.betas], dtype=self.delta.dtype, device=device)
        # A dimension of its own for the tokens, whose number a graph leaves open.
        self.length = None if controller.length is None else controller.length.view(len(self.delta), -1)

    def mark_dynamic(self) -> None:
        """Tells torch.compile that the number of video tokens differs from prompt to prompt."""
        packed = [self.rows, self.columns, self.original, self.delta]
        if isinstance(self.controller.optimizer, Adam):
            packed += [self.controller.optimizer.mean, self.controller.optimizer.square]
        if self.length is not None:
            packed.append(self.length)
        if self.noise is not None:
            packed.append(self.noise.tokens)
        for tensor in packed:
            mark_dynamic(tensor, 0)

    def gradient(self, gradient: Tensor) -> Tensor:
        """As :meth:`ValueCacheController.gradient`."""
        by_token = gradient.transpose(1, 2).reshape(-1, self.kv_heads, self.head_dim)
        packed = by_token.index_select(0, self.rows * gradient.shape[2] + self.columns).to(self.delta.dtype)
        return shift_gradient(self.original, self.delta, packed, self.controller.norm, self._length())

    def gradient_norm(self, gradient: Tensor) -> Tensor:
        """As :meth:`ValueCacheController.gradient_norm`."""
        squares = torch.linalg.vector_norm(gradient, dim=(1, 2)).square()
        return squares.new_zeros(self.batch).index_add(0, self.rows, squares).sqrt()

    def step(self, gradient: Tensor, active: Tensor, sound: Tensor) -> None:
        """Moves the ``active`` samples' ΔV and sets that of those that are not ``sound`` to 0; both (batch,) bool."""
        broken = self._spread(~sound[None])[0]
        gradient = gradient.masked_fill(broken, 0.0)
        self.delta.masked_fill_(broken, 0.0)
        active, optimizer = active.to(self.delta.dtype), self.controller.optimizer
        if isinstance(optimizer, Adam):
            self._adam_step(optimizer, gradient, active)
        else:
            self.delta.addcmul_(gradient, self._spread(active[None])[0], value=-optimizer.learning_rate)

    def write(self, values: Tensor) -> None:
        """As :meth:`ValueCacheController.write`."""
        moved, _ = moved_values(self.original, self.delta, self.controller.norm, self._length())
        moved = moved.to(values.dtype) if self.noise is None else rounded(moved, self.noise.next())
        vectors = (self.rows[:, None] * self.kv_heads + self.heads) * values.shape[2] + self.columns[:, None]
        values.view(-1, self.head_dim).index_copy_(0, vectors.flatten(), moved.view(-1, self.head_dim))

    def _adam_step(self, adam: Adam, gradient: Tensor, active: Tensor) -> None:
        adam.steps += active
        # An inactive sample that has never stepped would divide by 1 - β⁰ = 0.
        correction1, correction2 = 1 - self.betas ** adam.steps.clamp_min(1)
        root = correction2.sqrt()
        rate = active * root * adam.learning_rate / correction1
        weights, per_sample = (1 - self.betas) * active, torch.stack([root * adam.eps, rate])
        weight1, weight2, eps, rate = self._spread(torch.cat([weights, per_sample]))
        adam.mean.lerp_(gradient, weight1)
        adam.square.lerp_(gradient.square(), weight2)
        # lr · (mean / correction1) / (√(square / correction2) + eps); a rate of 0 makes the divisor infinite.
        self.delta.addcdiv_(adam.mean, adam.square.sqrt().add(eps).div(rate), value=-1)

    def _spread(self, samples: Tensor) -> Tensor:
        """(n, batch) → (n, tokens, 1, 1), each token with its sample's."""
        return samples[:, self.rows][..., None, None]

    def _length(self) -> Tensor | None:
        return None if self.length is None else self.length.flatten()[:, None]


def due_step(
    steering: Steering,
    controller: GraphController,
    inputs: dict[str, Any],
    ema: Tensor,
    peak: Tensor,
    coin: Tensor,
    unfinished: Tensor,
) -> DueStep:
    """One token's forward, the move of ΔV and of the cache, and the refreshed logits.

    Args:
        controller: The steering's one controller.
        inputs: As ``prepare_inputs_for_generation`` makes them for one token over a static cache.
        ema, peak: (batch,), the moving average and its peak before this token, nats.
        coin: (batch,), the random policy's α.
        unfinished: (batch,) bool.
    """
    method, layer = steering.method, steering.cache_layers[0]
    text_model, mask = steering.text_model, inputs["attention_mask"]
    hidden = text_model.embed_tokens(inputs["input_ids"])
    call = {
        "attention_mask": mask["full_attention"] if isinstance(mask, dict) else mask,
        "position_embeddings": text_model.rotary_emb(hidden, inputs["position_ids"][1:]),
        "position_ids": inputs["position_ids"][0],
        "use_cache": True,
    }
    for decoder_layer in text_model.layers[:-1]:
        hidden = decoder_layer(hidden, **{CACHE: inputs[CACHE]}, **call)
    # For the sake of the token's key and value, which it caches; all else it computes is dropped from the graph.
    text_model.layers[-1](hidden, **{CACHE: inputs[CACHE]}, **call)

    def tail(values: Tensor) -> Tensor:
        last = text_model.layers[-1](hidden, **{CACHE: _CachedTail(layer.keys, values)}, **call)
        return steering.head(text_model.norm(last))[:, -1]

    before = alpha = active = grad_norm = first = None
    healthy = controller.healthy
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
        controller.step(gradient, active, sound)
        controller.write(layer.values)
    refreshed = tail(layer.values) if method.refresh else None
    return DueStep(
        logits=first if refreshed is None else torch.where(active[:, None], refreshed, first),
        entropy=before,
        ema=ema,
        peak=peak,
        alpha=alpha,
        active=active,
        refreshed=None if refreshed is None else entropy(refreshed),
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
        return compiles_by_itself(model, model_kwargs, config)
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
