"""What one update does: the entropy's sign, the norm it keeps, and what it leaves alone."""

import pytest
import torch
from random_model import VIDEO, Forced, batch, forced_tokens, placed, prompt, random_model, steer
from transformers import DynamicCache, LogitsProcessorList

from lmms_eval_vreason import VReason
from lmms_eval_vreason.engines.hf.upstream import CACHE
from lmms_eval_vreason.method.controller import ValueCacheController

SIGNS = {"minimize": -1.0, "maximize": 1.0}


@pytest.fixture(scope="module")
def model():
    return random_model()


def four_prompts(seed: int) -> list[dict]:
    return [
        prompt(seed=4 * seed + i, videos=((1 + i % 2, 4, 2 * (1 + i)),), text=3 + (seed + 5 * i) % 9) for i in range(4)
    ]


@pytest.mark.parametrize("policy", SIGNS)
@pytest.mark.parametrize("first_token", [True, False], ids=["prefill", "decode"])
def test_a_fresh_step_moves_the_entropy_its_way(model, policy, first_token):
    """60 batches of 4 tokens, a fresh controller for each: all of the 240 changes have the policy's sign."""
    method = VReason(policy=policy, first_token=first_token, update_every=2)
    changes = []
    for seed in range(60):
        traces = method.generate(
            model, **batch(four_prompts(seed)), max_new_tokens=1 if first_token else 2, eos_token_id=None
        ).traces
        changes += [trace.entropy_change[-1] for trace in traces if trace.entropy[-1] > 0.02]
    assert len(changes) >= 200
    assert all(change * SIGNS[policy] > 0 for change in changes)


def test_the_refreshed_entropy_is_that_of_the_next_logits(model):
    """``entropy_change`` is the change of the very distribution that the token is chosen from."""
    method, tokens = VReason(policy="minimize", learning_rate=0.1), forced_tokens(4, 6)
    processor = Forced(tokens)
    result = method.generate(
        model, **batch(four_prompts(1)), max_new_tokens=6, logits_processor=LogitsProcessorList([processor])
    )
    for step, logits in enumerate(processor.logits):
        h = torch.distributions.Categorical(logits=logits.double()).entropy()
        change = torch.tensor([trace.entropy_change[step] for trace in result.traces])
        before = torch.tensor([trace.entropy[step] for trace in result.traces])
        assert torch.allclose(before + change.nan_to_num(), h.float(), atol=2e-6)
        assert change.isnan().all() == (step % 2 == 0)


def cache_after(model, inputs, tokens, method=None):
    """Every layer's (keys, values) after ``tokens`` under ``method``, or under plain ``generate``."""
    settings = {"max_new_tokens": tokens.shape[1], "logits_processor": LogitsProcessorList([Forced(tokens)])}
    cache = DynamicCache(config=model.config.get_text_config())
    if method is None:
        model.generate(**placed(model, inputs), **settings, **{CACHE: cache})
        return cache.layers, None
    _, loop = steer(model, method, **inputs, **settings, **{CACHE: cache})
    return cache.layers, loop


@pytest.mark.parametrize("norm", ["head", "token"])
@pytest.mark.parametrize("layers", [1, 2])
def test_norms_stay_and_nothing_else_moves(model, norm, layers):
    inputs, tokens = batch(four_prompts(2)), forced_tokens(4, 9)
    base, _ = cache_after(model, inputs, tokens)
    method = VReason(learning_rate=0.3, norm=norm, layers=layers, policy="maximize")
    steered, loop = cache_after(model, inputs, tokens, method)
    video = torch.nn.functional.pad(inputs["input_ids"] == VIDEO, (0, 8))
    for depth, (ours, theirs) in enumerate(zip(steered, base, strict=True)):
        moved = depth >= len(base) - layers
        values, originals = ours.values.transpose(1, 2), theirs.values.transpose(1, 2)
        axes = (-1,) if norm == "head" else (-2, -1)
        kept, were = values[video].norm(dim=axes), originals[video].norm(dim=axes)
        assert ((kept - were).abs() / were).max() <= 1e-5
        assert torch.equal(values[video], originals[video]) != moved
        # A later steered layer meets tokens that an earlier one has changed; the last of them is rewritten by it.
        if depth <= len(base) - layers:
            assert torch.equal(values[~video], originals[~video])
            assert torch.equal(ours.keys, theirs.keys)
    assert all(controller.delta.abs().max() > 0.1 for controller in loop.steering.controllers)


def test_values_are_free_without_a_norm(model):
    inputs, tokens = batch(four_prompts(2)), forced_tokens(4, 9)
    layers, loop = cache_after(model, inputs, tokens, VReason(learning_rate=0.3, norm="none", policy="maximize"))
    (controller,) = loop.steering.controllers
    written = controller.take(layers[-1].values)
    assert torch.allclose(written, controller.original + controller.delta)
    assert (written.norm(dim=-1) / controller.original.norm(dim=-1) - 1).abs().max() > 0.01


def one_controller(optimizer="adam", tokens=5, **choices):
    values = torch.randn(2, 2, tokens, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, tokens, dtype=torch.bool)
    return ValueCacheController(values, mask, optimizer=optimizer, learning_rate=0.01, **choices), values


def test_adam_is_torch_adam():
    """Against torch.optim.Adam, one optimiser a sample, the second sample idle at some steps."""
    controller, _ = one_controller()
    references = [torch.zeros(5, 2, 8, requires_grad=True) for _ in range(2)]
    optimizers = [torch.optim.Adam([reference], lr=0.01) for reference in references]
    generator = torch.Generator().manual_seed(1)
    for step in range(7):
        gradient = torch.randn(10, 2, 8, generator=generator)
        active = [True, step % 3 != 1]
        controller.step(gradient.clone(), active)
        for row, (reference, optimizer) in enumerate(zip(references, optimizers, strict=True)):
            if active[row]:
                reference.grad = controller.per_sample(gradient)[row]
                optimizer.step()
    for row, reference in enumerate(references):
        assert torch.allclose(controller.per_sample(controller.delta)[row], reference, atol=1e-7)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_an_inactive_sample_keeps_its_state_to_the_bit(optimizer):
    controller, _ = one_controller(optimizer)
    gradient = torch.randn(10, 2, 8, generator=torch.Generator().manual_seed(1))
    controller.step(gradient.clone(), [True, True])
    before = [delta.clone() for delta in controller.per_sample(controller.delta)]
    controller.step(gradient, [True, False])
    first, second = controller.per_sample(controller.delta)
    assert torch.equal(second, before[1])
    assert not torch.equal(first, before[0])


def test_a_gradient_that_is_not_finite_ends_the_steering_of_its_sample(model):
    """Its ΔV goes back to 0, its neighbours go on, and the trace says so."""
    inputs, tokens = batch(four_prompts(3)), forced_tokens(4, 6)

    class Broken(torch.autograd.Function):
        """The identity, whose gradient is nan for the second sample."""

        @staticmethod
        def forward(context, x):
            return x.clone()

        @staticmethod
        def backward(context, gradient):
            gradient = gradient.clone()
            gradient[1] = torch.nan
            return gradient

    layer = model.model.language_model.layers[-1].self_attn.o_proj
    hook = layer.register_forward_pre_hook(lambda module, args: (Broken.apply(args[0]),))
    try:
        settings = {"max_new_tokens": 6, "logits_processor": LogitsProcessorList([Forced(tokens)])}
        _, loop = steer(model, VReason(), **inputs, **settings)
    finally:
        hook.remove()
    (controller,) = loop.steering.controllers
    moved = [bool(controller.per_sample(controller.delta)[row].any()) for row in range(4)]
    assert moved == [True, False, True, True]
    assert [trace.updates for trace in loop.traces] == [3, 0, 3, 3]
    assert loop.traces[1].note.startswith("a gradient was not finite")
    values = controller.take(loop.steering.cache_layers[0].values)
    assert torch.equal(*(controller.per_sample(x)[1] for x in (values, controller.original)))
