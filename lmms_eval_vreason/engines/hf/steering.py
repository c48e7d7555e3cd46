"""Where the controller meets a live model: the last layers' caches, the gradient, the re-run of the tail.

The controller *is* the cache: V_new is written into the last layer's value cache, so every ordinary step runs the
untouched forward. A due step runs the model's own forward under grad mode with frozen weights while the last cache
layer hands out its values as an autograd leaf: nothing before that leaf is recorded, and attention stays upstream's.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin
from transformers.utils import ModelOutput

from lmms_eval_vreason.method.config import VReason
from lmms_eval_vreason.method.controller import ValueCacheController
from lmms_eval_vreason.method.entropy import OBJECTIVE_GRADIENTS, entropy_of, log_probabilities


@dataclass
class TailInputs:
    """What a due forward leaves behind: all that is needed to differentiate its tail and to run it again.

    Attributes:
        args, kwargs: What the first steered decoder layer was called with, cut to the last position.
        hidden: (batch, 1, hidden_size), the final norm's, which the head is called with; only for ``head_topk``.
        logits: (batch, vocabulary), the last position's, with their graph.
        leaves: One (batch, kv_heads, tokens, head_dim) tensor a steered layer: its cached values, requiring grad.
    """

    args: tuple = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    hidden: Tensor | None = None
    logits: Tensor | None = None
    leaves: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Update:
    """What one due step did.

    Attributes:
        moved: (batch,), the samples whose ΔV has moved. The rest holds for these.
        grad_norm: (batch,), L2 norm of dL/dΔV.
        logits: (batch, vocabulary), to choose the token from; None without a refresh.
    """

    moved: list[bool]
    grad_norm: list[float]
    logits: Tensor | None = None


class Steering:
    """The controllers of a batch, attached to one generation's cache."""

    def __init__(self, model: PreTrainedModel, method: VReason, cache: Cache, video_mask: Tensor) -> None:
        """Args: ``cache``, prefilled; ``video_mask`` (batch, tokens) bool over the cache's tokens."""
        self.method = method
        self.text_model: nn.Module = model.model.language_model
        self.head: nn.Module = model.get_output_embeddings()
        self.layers = list(self.text_model.layers[-method.layers :])
        self.cache_layers = cache.layers[-method.layers :]
        self.controllers = [
            ValueCacheController(
                layer.values,
                video_mask,
                optimizer=method.optimizer,
                learning_rate=method.learning_rate,
                norm=method.norm,
                rounding=method.rounding,
                seed=method.seed,
            )
            for layer in self.cache_layers
        ]
        # A sample whose gradient was once not finite decodes on as the base model.
        self.healthy: list[bool] = video_mask.any(dim=1).tolist()
        self._device = video_mask.device

    def forward(self, model: PreTrainedModel, inputs: dict[str, Any]) -> tuple[ModelOutput, TailInputs]:
        """The model's own forward for one token, recorded from the steered caches on, and what :meth:`update` needs."""
        tail = TailInputs()
        noting_hidden = _noting_hidden(self.text_model.norm, tail) if self.method.head_topk else nullcontext()
        with (
            noting_call(self.layers[0], tail, record=True),
            noting_hidden,
            self._caches(append=True, leaves=tail.leaves),
        ):
            outputs = model(**inputs, return_dict=True)
            # In here: a view taken under no_grad has no graph. The gradient of a slice would be a tensor of zeros.
            tail.logits = outputs.logits.squeeze(1)
        return outputs, tail

    def rerun(self, tail: TailInputs) -> TailInputs:
        """Runs the steered layers and the head again on the caches as they are now, recording a new graph."""
        again = TailInputs(args=tail.args, kwargs=tail.kwargs)
        with torch.enable_grad(), self._caches(append=False, leaves=again.leaves):
            again.hidden, again.logits = self._run_tail(again)
        return again

    def update(self, tail: TailInputs, log_p: Tensor, h: Tensor, alpha: list[float]) -> Update:
        """Moves ΔV, writes V_new into the cache and, if asked, refreshes the logits.

        A sample whose gradient is or was not finite stays as it is.

        Args:
            tail: From :meth:`forward` or :meth:`rerun`.
            log_p: (batch, vocabulary), of its logits.
            h: (batch,), their entropy, nats.
            alpha: (batch,), -1 or +1; 0 for a sample that is to stay as it is.
        """
        logits, grad_norm = tail.logits.detach(), [torch.nan] * len(alpha)
        alpha = [a if healthy else 0.0 for a, healthy in zip(alpha, self.healthy, strict=True)]
        moved = [a != 0 for a in alpha]
        for step in range(self.method.steps_per_update if any(moved) else 0):
            if step:
                tail = self.rerun(tail)
                log_p = log_probabilities(tail.logits.detach())
                h = entropy_of(log_p)
            norms = self._optimizer_step(tail, log_p, h, alpha)
            grad_norm = grad_norm if step else norms
            moved = [a != 0 for a in alpha]
            if not any(moved):
                break
        if not (self.method.refresh and any(moved)):
            return Update(moved, grad_norm)
        refreshed = self._refresh(tail)
        if not all(moved):
            refreshed = torch.where(torch.tensor(moved, device=logits.device)[:, None], refreshed, logits)
        return Update(moved, grad_norm, refreshed)

    def shift(self) -> Tensor:
        """(batch,) ‖ΔV‖ / ‖V‖; the mean over layers where several are steered."""
        shifts = [controller.shift().to(self._device) for controller in self.controllers]
        return shifts[0] if len(shifts) == 1 else torch.stack(shifts).mean(dim=0)

    def state_bytes(self) -> int:
        """Bytes that the controllers keep between steps."""
        return sum(controller.state_bytes() for controller in self.controllers)

    def _optimizer_step(self, tail: TailInputs, log_p: Tensor, h: Tensor, alpha: list[float]) -> list[float]:
        """The gradients' norms, (batch,). Sets ``alpha`` to 0 for a sample whose gradient is not finite."""
        cache_gradients = self._cache_gradients(tail, log_p, h, torch.tensor(alpha, device=h.device))
        gradients = [c.gradient(g) for c, g in zip(self.controllers, cache_gradients, strict=True)]
        norms = [c.gradient_norm(g).to(self._device) for c, g in zip(self.controllers, gradients, strict=True)]
        norm = norms[0] if len(norms) == 1 else torch.stack(norms).square().sum(dim=0).sqrt()
        # The one time that an update waits for the device.
        norm = norm.tolist()
        broken = [sample for sample, length in enumerate(norm) if not math.isfinite(length)]
        for sample in broken:
            self.healthy[sample], alpha[sample] = False, 0.0
        active = [a != 0 for a in alpha]
        for controller, gradient, layer in zip(self.controllers, gradients, self.cache_layers, strict=True):
            for sample in broken:
                controller.reset(sample)
            controller.step(gradient, active)
            if broken or any(active):
                controller.write(layer.values)
        return norm

    def _cache_gradients(self, tail: TailInputs, log_p: Tensor, h: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        """d(Σ weights · objective)/d(leaves). The vocabulary's part is closed form, the rest autograd's."""
        with torch.no_grad():
            top = None
            if self.method.head_topk:
                log_p, top = log_p.topk(min(self.method.head_topk, log_p.shape[-1]), dim=-1, sorted=False)
            gradient = OBJECTIVE_GRADIENTS[self.method.objective](log_p, h).mul_(weights[:, None])
            if top is None:
                return torch.autograd.grad(tail.logits, tail.leaves, gradient.to(tail.logits.dtype))
            weight = self.head.weight
            # Σ of the head's rows, weighted with their tokens' gradients, without a copy of the rows.
            hidden_gradient = nn.functional.embedding_bag(
                top.to(weight.device), weight, per_sample_weights=gradient.to(weight), mode="sum"
            )
            return torch.autograd.grad(tail.hidden, tail.leaves, hidden_gradient[:, None].to(tail.hidden))

    def _run_tail(self, tail: TailInputs) -> tuple[Tensor, Tensor]:
        """The final norm's output (batch, 1, hidden_size) and the logits (batch, vocabulary)."""
        hidden = tail.args[0]
        for layer in self.layers:
            hidden = layer(hidden, *tail.args[1:], **tail.kwargs)
        hidden = self.text_model.norm(hidden)
        return hidden, self.head(hidden).squeeze(1).to(self._device)

    @torch.no_grad()
    def _refresh(self, tail: TailInputs) -> Tensor:
        with self._caches(append=False, leaves=None):
            return self._run_tail(tail)[1]

    @contextmanager
    def _caches(self, *, append: bool, leaves: list[Tensor] | None) -> Iterator[None]:
        """Within it the steered cache layers' ``update`` is that of :func:`_update`."""
        for index, layer in enumerate(self.cache_layers):
            layer.update = _update(layer, append=append, follows=index > 0, leaves=leaves)
        try:
            yield
        finally:
            for layer in self.cache_layers:
                del layer.update


@contextmanager
def noting_call(layer: nn.Module, tail: TailInputs, *, record: bool = False) -> Iterator[None]:
    """Notes, in ``tail``, what ``layer`` is called with, cut to the last position.

    With ``record`` autograd records from that call on; before it there is nothing to record.
    """

    def note(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        cos, sin = kwargs["position_embeddings"]
        ids = kwargs.get("position_ids")
        tail.args, tail.kwargs = args, kwargs
        if args[0].shape[1] > 1:
            tail.args = (args[0][:, -1:], *args[1:])
            tail.kwargs = {
                **kwargs,
                "position_embeddings": (cos[..., -1:, :], sin[..., -1:, :]),
                "position_ids": None if ids is None else ids[..., -1:],
            }
        if record:
            torch.set_grad_enabled(True)

    handle = layer.register_forward_pre_hook(note, with_kwargs=True, prepend=True)
    before = torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_grad_enabled(before)
        handle.remove()


@contextmanager
def _noting_hidden(norm: nn.Module, tail: TailInputs) -> Iterator[None]:
    """Notes, in ``tail``, what the final norm gives for one position."""

    def note(module: nn.Module, args: tuple, output: Tensor) -> None:
        tail.hidden = output

    handle = norm.register_forward_hook(note)
    try:
        yield
    finally:
        handle.remove()


def _update(
    layer: CacheLayerMixin, *, append: bool, follows: bool, leaves: list[Tensor] | None
) -> Callable[..., tuple[Tensor, Tensor]]:
    """A cache layer's ``update`` that hands out its values as an autograd leaf, noted in ``leaves`` if that is given.

    With ``append=False`` it does not grow: the token is cached already.

    A layer that ``follows`` a steered one meets a token whose own key and value that one has moved: they are written
    again, and their gradient goes through them as well.
    """

    def update(keys: Tensor, values: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if append:
            with torch.no_grad():
                type(layer).update(layer, keys.detach(), values.detach(), *args, **kwargs)
        if follows:
            last = torch.arange(-keys.shape[-2], 0, device=keys.device) + layer.get_seq_length()
            if not append:
                with torch.no_grad():
                    layer.keys.index_copy_(2, last, keys.detach())
                    layer.values.index_copy_(2, last, values.detach())
        if leaves is None:
            return layer.keys, layer.values
        leaf = layer.values.detach().requires_grad_()
        leaves.append(leaf)
        if not follows:
            return layer.keys, leaf
        return layer.keys.detach().index_copy(2, last, keys), leaf.index_copy(2, last, values)

    return update


def tail_mask(attention_mask: Tensor | None, layer: CacheLayerMixin, attn_implementation: str) -> Tensor | None:
    """The attention mask of one query, the last token cached, over all that ``layer`` holds room for.

    Args:
        attention_mask: (batch, tokens) or None where nothing is padded.
        layer: A prefilled cache layer; a static one is longer than its tokens.

    Returns:
        None where every entry may be seen; else (batch, 1, 1, entries), bool for sdpa and additive for eager, or the
        two-dimensional mask for flash attention.
    """
    values = layer.values
    batch, entries, tokens = values.shape[0], values.shape[2], int(layer.get_seq_length())
    if "flash" in attn_implementation or (attention_mask is None and tokens == entries):
        return attention_mask
    if attention_mask is None:
        attention_mask = torch.ones((batch, tokens), dtype=torch.bool, device=values.device)
    seen = nn.functional.pad(attention_mask.bool(), (0, entries - tokens))[:, None, None]
    if attn_implementation == "sdpa":
        return seen
    mask = torch.zeros(seen.shape, dtype=values.dtype, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(values.dtype).min)
