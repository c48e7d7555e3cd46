"""What one update does: the entropy's sign, the norm it keeps, and what it leaves alone."""

import pytest
import torch
from random_model import (
    VIDEO,
    Forced,
    assert_same_run,
    batch,
    forced_tokens,
    packed,
    placed,
    prompt,
    random_model,
    steer,
    values_scaled,
)
from transformers import DynamicCache, LogitsProcessorList

from lmms_eval_vreason import VReason
from lmms_eval_vreason.engines.hf import due_step as due_step_module
from lmms_eval_vreason.engines.hf.due_step import due_step
from lmms_eval_vreason.engines.hf.upstream import CACHE

SIGNS = {"minimize": -1.0, "maximize": 1.0}


@pytest.fixture(scope="module")
def model():
    return random_model()


def four_prompts(seed: int) -> list[dict]:
    return [
        prompt(seed=4 * seed + i, videos=((1 + i % 2, 4, 2 * (1 + i)),), text=3 + (seed + 5 * i) % 9) for i in range(4)
    ]


@pytest.mark.parametrize("policy", SIGNS)
def test_a_fresh_step_moves_the_entropy_its_way(model, policy):
    """60 batches of 4 tokens, a fresh small ΔV for each: all of the 240 changes have the policy's sign."""
    method = VReason(policy=policy, update_every=2, learning_rate=0.01)
    changes = []
    for seed in range(60):
        traces = method.generate(model, **batch(four_prompts(seed)), max_new_tokens=2, eos_token_id=None).traces
        changes += [trace.entropy_change[-1] for trace in traces if trace.entropy[-1] > 0.02]
    assert len(changes) >= 200
    assert all(change * SIGNS[policy] > 0 for change in changes)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "nsgd"])
@pytest.mark.parametrize("norm", ["head", "token", "cache", "none"])
def test_one_rate_turns_every_model_alike(rows, optimizer, norm):
    """v_proj · s and o_proj / s leave the model's function as it is, and the steered run too."""
    inputs = batch(four_prompts(5)[:rows])
    method = VReason(optimizer=optimizer, norm=norm, update_every=1, beta1=0.5)
    scaled = [values_scaled(random_model(), 2.0**power) for power in (-6, -3, 0, 3, 6)]
    assert_same_run([method.generate(model, **inputs, max_new_tokens=12, eos_token_id=None) for model in scaled])


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
def test_norms_stay_and_nothing_else_moves(model, norm):
    inputs, tokens = batch(four_prompts(2)), forced_tokens(4, 9)
    base, _ = cache_after(model, inputs, tokens)
    method = VReason(learning_rate=0.3, norm=norm, policy="maximize", keep_shift=True)
    steered, loop = cache_after(model, inputs, tokens, method)
    video = torch.nn.functional.pad(inputs["input_ids"] == VIDEO, (0, 8))
    for depth, (ours, theirs) in enumerate(zip(steered, base, strict=True)):
        moved = depth == len(base) - 1
        values, originals = ours.values.transpose(1, 2), theirs.values.transpose(1, 2)
        axes = (-1,) if norm == "head" else (-2, -1)
        kept, were = values[video].norm(dim=axes), originals[video].norm(dim=axes)
        assert ((kept - were).abs() / were).max() <= 1e-5
        assert torch.equal(values[video], originals[video]) != moved
        assert torch.equal(values[~video], originals[~video])
        assert torch.equal(ours.keys, theirs.keys)
    assert loop.decoding.steering.shift.delta.abs().max() > 0.1


def test_values_are_free_without_a_norm(model):
    inputs, tokens = batch(four_prompts(2)), forced_tokens(4, 9)
    layers, loop = cache_after(
        model, inputs, tokens, VReason(learning_rate=0.3, norm="none", policy="maximize", keep_shift=True)
    )
    shift = loop.decoding.steering.shift
    written, original, delta = (packed(shift, x) for x in (layers[-1].values, shift.original, shift.delta))
    assert torch.allclose(written, original + delta)
    assert (written.norm(dim=-1) / original.norm(dim=-1) - 1).abs().max() > 0.01


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_a_gradient_that_is_not_finite_ends_the_steering_of_its_sample(model, mode):
    """Its ΔV, which it had moved before, goes back to 0, its neighbours go on, and the trace says so."""
    inputs, tokens = batch(four_prompts(3)), forced_tokens(4, 8)
    cache = {"cache_implementation": "static"} if mode == "static" else {}
    calls, due = [], due_step

    def breaking(seam, shift, *arguments):
        """The second due step's gradient is nan for the second sample."""
        calls.append(shift.delta.flatten(1).any(1).tolist())
        if len(calls) != 2:
            return due(seam, shift, *arguments)
        factor = torch.ones(4, 1)
        factor[1] = torch.nan
        own = seam.tail.before_head
        seam.tail.before_head = lambda *arguments: own(*arguments) * factor
        try:
            return due(seam, shift, *arguments)
        finally:
            del seam.tail.before_head

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(due_step_module, "due_step", breaking)
        settings = {"max_new_tokens": 8, "logits_processor": LogitsProcessorList([Forced(tokens)]), **cache}
        _, loop = steer(model, VReason(learning_rate=0.1), **inputs, **settings)
    shift = loop.decoding.steering.shift
    assert calls == [[False] * 4, [True] * 4, [True, False, True, True], [True, False, True, True]]
    assert [trace.updates for trace in loop.traces] == [4, 1, 4, 4]
    assert loop.traces[1].note.startswith("a gradient was not finite")
    assert [trace.note for trace in loop.traces[:1] + loop.traces[2:]] == ["", "", ""]
    assert loop.traces[1].shift[1] > 0
    assert not loop.traces[1].shift[3:].any()
    values = shift.window(loop.decoding.cache.layers[-1].values)
    assert torch.equal(values[1], shift.original[1])
    assert not torch.equal(values[0], shift.original[0])
