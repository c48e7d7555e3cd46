"""One due step as every engine takes it: from a token's last attention to the moved ΔV and the refreshed logits."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from lmms_eval_vreason.engines.head import Head
from lmms_eval_vreason.families.family import VocabularyHead
from lmms_eval_vreason.method.config import VReason
from lmms_eval_vreason.method.entropy import entropy_of, log_probabilities
from lmms_eval_vreason.method.policies import POLICIES, moving_average
from lmms_eval_vreason.method.shift import Shift

# The gradient at a function's argument, from that at its result.
Gradient = Callable[[Tensor], Tensor]

# A trace's note where an update was given up.
NOT_FINITE = "a gradient was not finite; from there on the sample went on as the base model"


def why_not(method: VReason, video_tokens: int) -> str:
    """A trace's note for a sample that had no update, of so many video tokens."""
    if not video_tokens:
        return "the prompt has no video tokens"
    if not method.steers:
        return "the policy is off" if method.policy == "off" else "the learning rate is 0"
    return f"no update was due (every {method.update_every} tokens) at an entropy over {method.min_entropy:g} nats"


class Reached(Protocol):
    """The last layer's attention of one query, as an engine found it.

    Attributes:
        output: (batch, 1, heads, head_dim), A as the model computed it.
        values: (batch, kv_heads, tokens, head_dim), a tensor that may be written to.
    """

    @property
    def output(self) -> Tensor: ...

    @property
    def values(self) -> Tensor: ...

    def attention(self) -> tuple[Tensor, Tensor]:
        """Its probabilities p, (batch, kv_heads, query heads a KV head, tokens), and A, (…, head_dim), in float32."""


class TailSeam(Protocol):
    """What a due step asks of an engine.

    Attributes:
        tail: The head, behind the final norm.
    """

    @property
    def tail(self) -> VocabularyHead: ...

    def forward(self, inputs: dict[str, Any]) -> tuple[Reached, Tensor, Gradient]:
        """What was reached; the logits (batch, vocabulary); the gradient at A from that at the final norm's output."""

    def hidden(self, output: Tensor) -> Tensor:
        """(batch, hidden_size), the final norm's output, from A (batch, 1, heads, head_dim)."""


class Before(NamedTuple):
    """What a due step builds on, (batch,) each: the entropy's average and peak so far, what this token's entropy counts
    in the average, the random policy's α, which samples have not ended, and which have only had finite gradients."""

    ema: Tensor
    peak: Tensor
    weight: Tensor
    coin: Tensor
    unfinished: Tensor
    healthy: Tensor


class DueStep(NamedTuple):
    """What one due step gives; all (batch,), but ``logits`` (batch, vocabulary), to choose the token from.

    ``refreshed`` is the entropy after the update and ``changed`` whether another token is the likeliest then; nan and
    False without a refresh. ``grad_norm`` is that of the first step, ``shift`` ‖ΔV‖ / ‖V‖; None where no sample was
    active, and no update made.
    """

    logits: Tensor
    entropy: Tensor
    alpha: Tensor
    active: Tensor
    healthy: Tensor
    grad_norm: Tensor
    refreshed: Tensor
    changed: Tensor
    shift: Tensor | None


def due_step(seam: TailSeam, shift: Shift, method: VReason, inputs: dict[str, Any], before: Before) -> DueStep:
    """One token's forward, ``method.steps_per_update`` steps of ΔV on it, V_new into the cache, and fresh logits.

    Args:
        seam: One that is attached.
        inputs: As ``prepare_inputs_for_generation`` makes them for one token.
    """
    reached, logits, to_output = seam.forward(inputs)
    log_p = log_probabilities(logits)
    h = entropy_of(log_p)
    alpha = POLICIES[method.policy](*moving_average(before.ema, before.peak, h, before.weight), before.coin)
    active, healthy = before.unfinished & before.healthy & (h >= method.min_entropy), before.healthy
    refreshed = grad_norm = torch.full_like(h, torch.nan)
    changed = torch.zeros_like(active)
    head = Head.of(seam.tail, method, (logits, log_p), active)
    if head is None:
        return DueStep(logits, h, alpha, active, healthy, grad_norm, refreshed, changed, None)
    output, moved, now = Output(reached, shift), shift.window(reached.values), (logits, log_p, h)
    shift.begin()
    for number in range(method.steps_per_update):
        if number:
            hidden, to_output = linearised(seam.hidden, output.at(moved))
            now = head.distribution(hidden)
        gradient, sound = _finite(to_output(head.gradient(*now, torch.where(active, alpha, 0.0))))
        shift.give_up(~sound)
        active, healthy = active & sound.to(h.device), healthy & sound.to(h.device)
        gradient = shift.gradient(output.p, by_kv_head(gradient, output.p))
        if not number:
            grad_norm = torch.linalg.vector_norm(gradient.flatten(1), dim=1).to(h.device)
        shift.step(gradient, active.to(gradient.device))
        moved = shift.moved()
    if shift.kept:
        shift.window(reached.values).copy_(moved)
    if method.refresh:
        again, _, refreshed = head.distribution(seam.hidden(output.at(moved)))
        changed = again.argmax(dim=-1) != logits.argmax(dim=-1)
        logits = torch.where(active[:, None], again, logits)
    # Built at the end: a graph of torch 2.11 cannot return a named tuple made by _replace.
    return DueStep(logits, h, alpha, active, healthy, grad_norm, refreshed, changed, shift.relative().to(h.device))


def _finite(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient at A, with 0 for samples where it is not finite, and which ones it is finite for, (batch,)."""
    sound = gradient.flatten(1).isfinite().all(dim=1)
    return torch.where(sound[:, None, None, None], gradient, 0.0), sound


class Output:
    """The attention's output A of one query, as a function of the video values: it is linear in them.

    Attributes:
        p: (batch, kv_heads, query heads a KV head, window), its probabilities; 0 where no video is.
    """

    def __init__(self, reached: Reached, shift: Shift) -> None:
        p, exact = reached.attention()
        self.p = shift.window(p, dim=3) * shift.video
        self.dtype = reached.output.dtype
        # What the video does not contribute stays.
        self.rest = exact - self.p @ shift.window(reached.values).to(p.dtype)

    def at(self, moved: Tensor) -> Tensor:
        """(batch, 1, heads, head_dim), from V_new, (batch, kv_heads, window, head_dim)."""
        return (self.rest + self.p @ moved.to(self.p.dtype)).flatten(1, 2)[:, None].to(self.dtype)


def probabilities(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Of one query: (batch, kv_heads, query heads a KV head, tokens), in float32 at least.

    Args:
        query: (batch, heads, 1, head_dim).
        key: (batch, kv_heads, tokens, head_dim).
        mask: (batch, 1, 1, tokens), bool or additive; or flash attention's, (batch, tokens).
    """
    dtype = torch.promote_types(key.dtype, torch.float32)
    grouped = query.reshape(len(query), key.shape[1], -1, query.shape[-1])
    scores = (grouped.to(dtype) * scaling) @ key.to(dtype).transpose(2, 3)
    if mask is not None:
        mask = mask[:, None, None] if mask.dim() == 2 else mask
        scores = scores + mask if mask.is_floating_point() else scores.masked_fill(~mask.bool(), -torch.inf)
    return scores.softmax(dim=-1)


def by_kv_head(output: Tensor, p: Tensor) -> Tensor:
    """One query's A, or a gradient at it, (batch, 1, heads, head_dim) → (batch, kv_heads, group, head_dim)."""
    return output.reshape(*p.shape[:3], output.shape[-1])


def linearised(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Gradient]:
    """function(x), and the gradient in x from that in function(x)."""
    if torch.compiler.is_compiling():
        result, pull_back, *_ = torch.func.vjp(function, x)
        return result, lambda gradient: pull_back(gradient)[0]
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        y = function(leaf)
    return y.detach(), lambda gradient: gradient_at(y, leaf, gradient)


def gradient_at(y: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
    """The gradient in ``x`` from that in ``y``, which autograd recorded from it."""
    (in_x,) = torch.autograd.grad(y, x, gradient.to(y))
    return in_x
