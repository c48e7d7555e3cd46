"""dL/dΔV against plain autograd over a full forward without a cache, ΔV added where the last v_proj's output arises."""

from itertools import pairwise

import pytest
import torch
from random_model import VIDEO, Forced, batch, forced_tokens, prompt, random_model, steer, with_double_norms
from transformers import LogitsProcessorList
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb

from lmms_eval_vreason import VReason
from lmms_eval_vreason.method.controller import ValueCacheController, moved_values, shift_gradient

SAMPLES = [prompt(seed=1), prompt(seed=2, videos=((2, 4, 6),), text=11), prompt(seed=3, videos=((1, 4, 4), (2, 2, 4)))]
LIMITS = {torch.float64: 1e-10, torch.float32: 1e-4}


def reference_move(values, delta, norm):
    """V + ΔV at the norm of V; (tokens, kv_heads, head_dim), written apart from the package."""
    moved = values + delta
    if norm == "none":
        return moved
    axes = (2,) if norm == "head" else (1, 2)
    scale = (values.square().sum(axes, keepdim=True) / moved.square().sum(axes, keepdim=True)).sqrt()
    return moved * scale


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
        return output.index_put(where.nonzero(as_tuple=True), reference_move(values, delta, norm).flatten(1))

    hook = attention.v_proj.register_forward_hook(add)
    try:
        return model(**{**inputs, **longer}, use_cache=False).logits[:, -1]
    finally:
        hook.remove()


def relative_error(ours, reference):
    return ((ours - reference).norm() / reference.norm()).item()


def update_of_step(model, inputs, tokens, updates, **hyperparameters):
    """ΔV before and after the ``updates``-th update, with SGD at rate 1, so that the step is minus the gradient."""
    deltas = []
    for count in (updates - 1, updates):
        method = VReason(optimizer="sgd", learning_rate=1.0, min_entropy=0.0, update_every=2, **hyperparameters)
        _, loop = steer(
            model,
            method,
            positions="transformers",  # as the forward without a cache has them
            **inputs,
            max_new_tokens=max(2 * count, 1),
            logits_processor=LogitsProcessorList([Forced(tokens)]),
        )
        deltas.append([controller.delta for controller in loop.steering.controllers])
    return (*deltas, loop)


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    ("updates", "choices"),
    [
        (1, {}),
        (2, {}),
        (2, {"policy": "maximize"}),
        (2, {"norm": "token"}),
        (2, {"norm": "none"}),
        (2, {"objective": "kl_u_p"}),
        (2, {"head_topk": 96}),
        (2, {"refresh": False}),
    ],
    ids=str,
)
def test_gradient_equals_autograd(dtype, rows, updates, choices):
    model = with_double_norms(random_model(dtype=dtype))
    inputs, tokens = batch(SAMPLES[:rows], dtype), forced_tokens(rows, 4)
    (before,), (after,), loop = update_of_step(
        model, inputs, tokens, updates, **{"policy": "minimize", "ema_decay": 0.5, **choices}
    )
    alpha = torch.tensor([trace.alpha[2 * updates - 1] for trace in loop.traces], dtype=dtype)
    delta = before.clone().requires_grad_()
    logits = full_forward(model, inputs, tokens[:, : 2 * updates - 1], delta, choices.get("norm", "head"))
    loss = reference_loss(logits, alpha, choices.get("objective", "kl_p_u"))
    (reference,) = torch.autograd.grad(loss, delta)
    assert relative_error(before - after, reference) <= LIMITS[dtype]
    assert (before.norm() > 0) == (updates > 1)


@pytest.mark.parametrize("dtype", LIMITS)
def test_samples_of_a_batch_follow_their_own_alpha(dtype):
    """Three samples, two of them with α = -1 and one with +1: each gets its own sign and its own gradient."""
    model = with_double_norms(random_model(dtype=dtype, seed=3))
    inputs, tokens = batch(SAMPLES, dtype), forced_tokens(3, 6)
    for updates in (1, 2, 3):
        (before,), (after,), loop = update_of_step(model, inputs, tokens, updates, policy="switch", ema_decay=0.3)
        alpha = torch.tensor([trace.alpha[2 * updates - 1] for trace in loop.traces], dtype=dtype)
        delta = before.clone().requires_grad_()
        logits = full_forward(model, inputs, tokens[:, : 2 * updates - 1], delta, "head")
        (reference,) = torch.autograd.grad(reference_loss(logits, alpha, "kl_p_u"), delta)
        assert relative_error(before - after, reference) <= LIMITS[dtype]
        if len(set(alpha.tolist())) == 2:
            return
    pytest.fail("every update had the same α in all samples: choose another seed")


def steered_tail(model, inputs, tokens, deltas, norm):
    """As :func:`full_forward` for the last ``len(deltas)`` layers, ΔV seen by the last token alone.

    A decoding loop with a cache keeps the keys and values that earlier tokens left in the later layers; only the last
    token meets moved values. Attention is written out, from the hidden states of a forward without a cache.
    """
    ids = torch.cat([inputs["input_ids"], tokens], dim=1)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(tokens)], dim=1).bool()
    types = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(tokens)], dim=1)
    text, seen = model.model.language_model, {}
    layers = text.layers[-len(deltas) :]
    hooks = [layer.register_forward_pre_hook(_noting(seen), with_kwargs=True) for layer in layers]
    with torch.no_grad():
        model(
            **{**inputs, "input_ids": ids, "attention_mask": mask.long(), "mm_token_type_ids": types}, use_cache=False
        )
    for hook in hooks:
        hook.remove()
    last = seen[layers[0]][0][:, -1:]
    for layer, delta in zip(layers, deltas, strict=True):
        hidden, (cos, sin) = seen[layer]
        last = _layer_for_last_token(layer, hidden, last, cos, sin, mask, ids == VIDEO, delta, norm)
    return model.lm_head(text.norm(last))[:, -1]


def _noting(seen):
    def note(module, args, kwargs):
        seen[module] = (args[0], kwargs["position_embeddings"])

    return note


def _layer_for_last_token(layer, hidden, last, cos, sin, mask, video, delta, norm):
    attention = layer.self_attn
    states = layer.input_layernorm(torch.cat([hidden[:, :-1], last], dim=1))
    queries, keys, values = (
        projection(states).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    queries, keys = apply_rotary_pos_emb(queries, keys, cos, sin)
    values = values.transpose(1, 2)
    values = values.index_put(video.nonzero(as_tuple=True), reference_move(values[video], delta, norm)).transpose(1, 2)
    groups = queries.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(groups, dim=1), values.repeat_interleave(groups, dim=1)
    scores = queries[:, :, -1:] @ keys.transpose(2, 3) * attention.head_dim**-0.5
    weights = scores.masked_fill(~mask[:, None, None], -torch.inf).softmax(dim=-1)
    out = last + attention.o_proj((weights @ values).transpose(1, 2).flatten(2))
    return out + layer.mlp(layer.post_attention_layernorm(out))


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("objective", ["kl_p_u", "kl_u_p"])
def test_gradient_of_several_layers(dtype, rows, layers, objective):
    model = with_double_norms(random_model(dtype=dtype))
    inputs, tokens = batch(SAMPLES[:rows], dtype), forced_tokens(rows, 2)
    _, after, loop = update_of_step(model, inputs, tokens, 1, policy="maximize", layers=layers, objective=objective)
    deltas = [torch.zeros_like(delta).requires_grad_() for delta in after]
    logits = steered_tail(model, inputs, tokens[:, :1], deltas, "head")
    references = torch.autograd.grad(reference_loss(logits, torch.ones(rows, dtype=dtype), objective), deltas)
    for ours, reference in zip(after, references, strict=True):
        assert relative_error(-ours, reference) <= LIMITS[dtype]
    norms = torch.stack([r.square().sum() for r in references]).sum().sqrt()
    noted = torch.tensor([trace.grad_norm[1] for trace in loop.traces], dtype=dtype).square().sum().sqrt()
    assert torch.isclose(noted, norms, rtol=1e-4)


@pytest.mark.parametrize("rows", [1, 3])
def test_first_token_and_further_steps_rerun_the_tail(rows):
    """The prefill's update and the second of two steps take their gradient from a re-run of the tail: exact as well."""
    model = with_double_norms(random_model(dtype=torch.float64))
    inputs = batch(SAMPLES[:rows], torch.float64)
    no_tokens = inputs["input_ids"].new_zeros((rows, 0))
    deltas = [torch.zeros((), dtype=torch.float64)]
    for steps in (1, 2):
        method = VReason(
            policy="minimize", optimizer="sgd", learning_rate=5.0, first_token=True, steps_per_update=steps
        )
        _, loop = steer(model, method, positions="transformers", **inputs, max_new_tokens=1)
        deltas.append(loop.steering.controllers[0].delta)
    for before, after in pairwise(deltas):
        delta = before.expand_as(after).clone().requires_grad_()
        logits = full_forward(model, inputs, no_tokens, delta, "head")
        loss = reference_loss(logits, -torch.ones(rows, dtype=torch.float64), "kl_p_u")
        (reference,) = torch.autograd.grad(loss, delta)
        assert relative_error((before - after) / 5.0, reference) <= 1e-10


@pytest.mark.parametrize("norm", ["head", "token", "none"])
def test_update_through_the_norm(norm):
    """V_new and the closed form of its gradient against autograd, at a large ΔV."""
    generator = torch.Generator().manual_seed(0)
    values, delta, weight = (torch.randn(7, 2, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    delta.requires_grad_()
    moved = reference_move(values, delta, norm)
    (reference,) = torch.autograd.grad((moved * weight).sum(), delta)
    assert torch.allclose(moved_values(values, delta.detach(), norm)[0], moved.detach(), rtol=1e-12)
    assert torch.allclose(shift_gradient(values, delta.detach(), weight, norm), reference, rtol=1e-10)


def test_values_of_zero_norm_stay_zero():
    values = torch.zeros(1, 2, 4, 8)
    controller = ValueCacheController(values, torch.ones(1, 4, dtype=torch.bool), optimizer="adam", learning_rate=0.1)
    controller.step(controller.gradient(torch.ones(1, 2, 4, 8)), [True])
    controller.write(values)
    assert not values.any()
