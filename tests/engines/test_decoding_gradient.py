"""dL/dΔV against plain autograd over a full forward without a cache, ΔV added where the last v_proj's output arises."""

from itertools import pairwise

import pytest
import torch
from random_model import (
    FAMILIES,
    VIDEO,
    Forced,
    batch,
    forced_tokens,
    moved_at_its_norm,
    packed,
    prompt,
    random_model,
    steer,
    with_double_norms,
)
from transformers import LogitsProcessorList

from lmms_eval_vreason import VReason

SAMPLES = [prompt(seed=1), prompt(seed=2, videos=((2, 4, 6),), text=11), prompt(seed=3, videos=((1, 4, 4), (2, 2, 4)))]
LIMITS = {torch.float64: 1e-10, torch.float32: 1e-4}


def reference_loss(logits, alpha, objective):
    """Σ over samples of α · KL, from the definition."""
    log_p = torch.log_softmax(logits, dim=-1)
    size = logits.shape[-1]
    if objective == "kl_p_u":
        divergence = (log_p.exp() * (log_p + torch.log(torch.tensor(float(size))))).sum(-1)
    else:
        divergence = (-torch.log(torch.tensor(float(size))) - log_p).mean(-1)
    return (alpha * divergence).sum()


def full_forward(model, inputs, tokens, delta, norm):
    """Logits after ``tokens``, with no cache, and ΔV (tokens, kv_heads, head_dim) at the last layer's v_proj."""
    ids = torch.cat([inputs["input_ids"], tokens], dim=1)
    where = ids == VIDEO
    longer = {"input_ids": ids}
    for name, fill in (("attention_mask", 1), ("mm_token_type_ids", 0)):
        longer[name] = torch.cat([inputs[name], torch.full_like(tokens, fill)], dim=1)
    attention = model.model.language_model.layers[-1].self_attn

    def add(module, args, output):
        values = output[where].unflatten(-1, (-1, attention.head_dim))
        samples = zip(values.split(where.sum(1).tolist()), delta.split(where.sum(1).tolist()), strict=True)
        moved = torch.cat([moved_at_its_norm(*sample, norm) for sample in samples])
        return output.index_put(where.nonzero(as_tuple=True), moved.flatten(1))

    hook = attention.v_proj.register_forward_hook(add)
    try:
        return model(**{**inputs, **longer}, use_cache=False).logits[:, -1]
    finally:
        hook.remove()


def relative_error(ours, reference):
    return ((ours - reference).norm() / reference.norm()).item()


def update_of_step(model, inputs, tokens, updates, **hyperparameters):
    """ΔV before the ``updates``-th update, and its gradient: minus an SGD step at rate 1, without the step's unit."""
    deltas, turns = [], []
    for count in (updates - 1, updates):
        choices = {"update_every": 2, "head_topk": 0, "keep_shift": True, **hyperparameters}
        method = VReason(optimizer="sgd", learning_rate=1.0, min_entropy=0.0, **choices)
        _, loop = steer(
            model,
            method,
            positions="transformers",  # as the forward without a cache has them
            **inputs,
            max_new_tokens=max(2 * count, 1),
            logits_processor=LogitsProcessorList([Forced(tokens)]),
        )
        shift = loop.decoding.steering.shift
        deltas.append(packed(shift, shift.delta))
        turns.append(packed(shift, shift.turns))
    return deltas[0], (turns[0] - turns[1]) / packed(shift, shift.unit), loop


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    ("updates", "choices"),
    [
        (1, {}),
        (2, {}),
        (2, {"policy": "maximize"}),
        (2, {"norm": "token"}),
        (2, {"norm": "cache"}),
        (2, {"norm": "none"}),
        (2, {"objective": "kl_u_p"}),
        (2, {"head_topk": 96, "head_tail": 0.0}),
        (2, {"refresh": False}),
    ],
    ids=str,
)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_equals_autograd(dtype, rows, updates, choices, family):
    model = with_double_norms(random_model(dtype=dtype, family=family))
    inputs, tokens = batch(SAMPLES[:rows], dtype, family), forced_tokens(rows, 4)
    before, gradient, loop = update_of_step(
        model, inputs, tokens, updates, **{"policy": "minimize", "ema_decay": 0.5, **choices}
    )
    alpha = torch.tensor([trace.alpha[2 * updates - 1] for trace in loop.traces], dtype=dtype)
    delta = before.clone().requires_grad_()
    logits = full_forward(model, inputs, tokens[:, : 2 * updates - 1], delta, choices.get("norm", "head"))
    loss = reference_loss(logits, alpha, choices.get("objective", "kl_p_u"))
    (reference,) = torch.autograd.grad(loss, delta)
    assert relative_error(gradient, reference) <= LIMITS[dtype]
    assert (before.norm() > 0) == (updates > 1)


@pytest.mark.parametrize("dtype", LIMITS)
def test_samples_of_a_batch_follow_their_own_alpha(dtype):
    """Three samples, two of them with α = -1 and one with +1: each gets its own sign and its own gradient."""
    model = with_double_norms(random_model(dtype=dtype, seed=3))
    inputs, tokens = batch(SAMPLES, dtype), forced_tokens(3, 6)
    for updates in (1, 2, 3):
        before, gradient, loop = update_of_step(model, inputs, tokens, updates, policy="switch", ema_decay=0.3)
        alpha = torch.tensor([trace.alpha[2 * updates - 1] for trace in loop.traces], dtype=dtype)
        delta = before.clone().requires_grad_()
        logits = full_forward(model, inputs, tokens[:, : 2 * updates - 1], delta, "head")
        (reference,) = torch.autograd.grad(reference_loss(logits, alpha, "kl_p_u"), delta)
        assert relative_error(gradient, reference) <= LIMITS[dtype]
        if len(set(alpha.tolist())) == 2:
            return
    pytest.fail("every update had the same α in all samples: choose another seed")


@pytest.mark.parametrize("norm", ["head", "token", "cache", "none"])
@pytest.mark.parametrize("rows", [1, 3])
def test_further_steps_of_an_update_go_on_from_the_moved_values(rows, norm):
    """Their gradient comes from the tail alone, over the values that the step before has moved: exact as well.

    So are the refreshed logits, against a forward over the moved values.
    """
    model = with_double_norms(random_model(dtype=torch.float64))
    inputs, tokens = batch(SAMPLES[:rows], torch.float64), forced_tokens(rows, 2)
    deltas = [torch.zeros((), dtype=torch.float64)]
    for steps in (1, 2, 3):
        method = VReason(
            policy="minimize", optimizer="sgd", learning_rate=5.0, steps_per_update=steps, norm=norm, head_topk=0
        )
        processor = Forced(tokens)
        settings = {"max_new_tokens": 2, "logits_processor": LogitsProcessorList([processor])}
        _, loop = steer(model, method, positions="transformers", **inputs, **settings)
        shift = loop.decoding.steering.shift
        deltas.append(packed(shift, shift.delta))
        refreshed = full_forward(model, inputs, tokens[:, :1], deltas[-1], norm).detach()
        assert (processor.logits[1] - refreshed).abs().max() <= 1e-6 * refreshed.abs().max()
    for before, after in pairwise(deltas):
        delta = before.expand_as(after).clone().requires_grad_()
        logits = full_forward(model, inputs, tokens[:, :1], delta, norm)
        loss = reference_loss(logits, -torch.ones(rows, dtype=torch.float64), "kl_p_u")
        (reference,) = torch.autograd.grad(loss, delta)
        # A step is the gradient in units, in units.
        assert relative_error((before - after) / packed(shift, shift.unit) ** 2 / 5.0, reference) <= 1e-10
