"""A batch is its samples one by one; generations do not influence each other; a model is left as it was."""

import numpy as np
import pytest
import torch
from random_model import Forced, at_video, batch, forced_tokens, placed, prompt, random_model, steer
from transformers import DynamicCache, LogitsProcessorList

from lmms_eval_vreason import VReason
from lmms_eval_vreason.engines.hf.upstream import CACHE

SAMPLES = [
    prompt(seed=1),
    prompt(seed=2, videos=((2, 4, 6),), text=11),
    prompt(seed=3, videos=((1, 4, 4), (2, 2, 4)), images=((1, 4, 4),), text=3),
]
METHODS = {
    "default": VReason(learning_rate=0.03),
    "switching": VReason(learning_rate=0.1, ema_decay=0.3, update_every=1),
    "sgd": VReason(optimizer="sgd", learning_rate=20.0, policy="minimize"),
    "steps": VReason(learning_rate=0.03, steps_per_update=2),
    "topk": VReason(learning_rate=0.03, head_topk=24, refresh=False, keep_shift=True),
    "lite": VReason(learning_rate=0.03, prune_ratio=0.5),
    "lite, random": VReason(learning_rate=0.03, prune_ratio=0.3, prune_score="random", policy="random"),
}


def delta(loop, row):
    shift = loop.decoding.steering.shift
    return at_video(shift, shift.delta, row)


def check_batch(model, method, cache, family):
    settings = {"max_new_tokens": 12, "eos_token_id": None, "cache_implementation": cache}
    together, loop = steer(model, method, **batch(SAMPLES, family=family), **settings)
    for row, sample in enumerate(SAMPLES):
        alone, own = steer(model, method, **batch([sample], family=family), **settings)
        assert torch.equal(together[row, -12:], alone[0, -12:])
        ours, theirs = delta(loop, row), delta(own, 0)
        # By norm: Adam makes a full step of an entry whose gradient is rounding noise.
        assert (ours - theirs).norm() <= 2e-3 * theirs.norm()
        assert ours.abs().max() > 1e-3
        assert np.array_equal(loop.traces[row].alpha, own.traces[0].alpha)
        for name in ("entropy", "ema", "peak", "entropy_change", "shift", "grad_norm"):
            pair = getattr(loop.traces[row], name), getattr(own.traces[0], name)
            assert np.allclose(*pair, rtol=2e-3, atol=2e-5, equal_nan=True)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_batch_equals_one_by_one(model, method, cache):
    check_batch(model, method, cache, "qwen2_5_vl")


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_batch_of_qwen2_vl(method, attention):
    check_batch(random_model(attention=attention, family="qwen2_vl"), method, "dynamic", "qwen2_vl")


def test_a_finished_sample_freezes(sdpa):
    """From its end on its ΔV stays to the bit, however long its neighbours go on."""
    tokens = forced_tokens(3, 20)
    tokens[1, 6] = sdpa.generation_config.eos_token_id

    def after(count):
        settings = {"max_new_tokens": count, "logits_processor": LogitsProcessorList([Forced(tokens)])}
        method = VReason(learning_rate=0.03, keep_shift=True, optimizer="adam")
        return steer(sdpa, method, **batch(SAMPLES), **settings)[1]

    short, long = after(7), after(20)
    assert torch.equal(delta(short, 1), delta(long, 1))
    assert not torch.equal(delta(short, 0), delta(long, 0))
    assert [len(trace.entropy) for trace in long.traces] == [20, 7, 20]
    assert [trace.updates for trace in long.traces] == [10, 3, 10]


def test_two_generations_in_a_row(sdpa):
    """A second run gives what a first one gives, also after another prompt, method or plain ``generate``."""
    method, settings = VReason(learning_rate=0.1), {"max_new_tokens": 16, "eos_token_id": None}
    plain = sdpa.generate(**batch(SAMPLES), **settings)
    first, loop = steer(sdpa, method, **batch(SAMPLES), **settings)
    method.generate(sdpa, **batch(SAMPLES[1:2]), **settings)
    second, again = steer(sdpa, method, **batch(SAMPLES), **settings)
    assert torch.equal(first, second)
    assert torch.equal(delta(loop, 0), delta(again, 0))
    assert not torch.equal(first, plain)
    assert torch.equal(sdpa.generate(**batch(SAMPLES), **settings), plain)


def hooks(model):
    return sum(
        len(getattr(module, kind))
        for module in model.modules()
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    )


def assert_untouched(model):
    """Every attention layer has the model's own config, and nothing of this package's."""
    for layer in model.model.language_model.layers:
        assert layer.self_attn.config is model.config.text_config
        assert "vreason" not in vars(layer.self_attn)


class Failing:
    """A logits processor that fails at its ``token``-th call."""

    def __init__(self, token):
        self.token, self.calls = token, 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        if self.calls > self.token:
            raise RuntimeError("in the middle")
        return scores


@pytest.mark.parametrize("inside", ["processor", "prefill", "due forward", "refresh"])
def test_an_exception_leaves_the_model_as_it_was(inside):
    model = random_model(seed=5)
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    flags = [parameter.requires_grad for parameter in parameters]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cache = DynamicCache(config=model.config.get_text_config())
    settings = {"max_new_tokens": 8, CACHE: cache, "eos_token_id": None}
    plain = model.generate(**batch(SAMPLES), max_new_tokens=8, eos_token_id=None)
    own_hook = None
    if inside == "processor":
        settings["logits_processor"] = LogitsProcessorList([Failing(3)])
    else:
        # The head's runs: the prefill, a due forward and its refresh, an ordinary forward, a due forward.
        failing = Failing({"prefill": 0, "refresh": 2, "due forward": 4}[inside])
        own_hook = model.lm_head.register_forward_hook(lambda module, args, output: failing(None, output))
    before = hooks(model)
    with pytest.raises(RuntimeError, match="in the middle"):
        VReason().generate(model, **batch(SAMPLES), **settings)
    assert hooks(model) == before
    if own_hook is not None:
        own_hook.remove()
    assert [parameter.requires_grad for parameter in parameters] == flags
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in parameters)
    assert_untouched(model)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model.generate(**batch(SAMPLES), max_new_tokens=8, eos_token_id=None), plain)


def test_a_run_leaves_the_model_as_it_was(sdpa):
    flags = [parameter.requires_grad for parameter in sdpa.parameters()]
    config = sdpa.generation_config.to_dict()
    before = hooks(sdpa)
    VReason(steps_per_update=2).generate(sdpa, **batch(SAMPLES), max_new_tokens=5)
    assert [parameter.requires_grad for parameter in sdpa.parameters()] == flags
    assert sdpa.generation_config.to_dict() == config
    assert hooks(sdpa) == before
    assert_untouched(sdpa)


def test_under_no_grad(sdpa):
    settings = {"max_new_tokens": 8, "eos_token_id": None}
    expected = VReason(learning_rate=0.1).generate(sdpa, **batch(SAMPLES), **settings)
    with torch.no_grad():
        result = VReason(learning_rate=0.1).generate(sdpa, **batch(SAMPLES), **settings)
        assert not torch.is_grad_enabled()
    assert torch.equal(result.sequences, expected.sequences)
    assert result.traces[0].updates == 4


def test_a_prompt_whose_start_is_cached(sdpa):
    """A cache that already holds the video (a question on a video just seen) is steered as a fresh one."""
    inputs, settings = batch(SAMPLES[:1]), {"max_new_tokens": 10, "eos_token_id": None}
    expected, loop = steer(sdpa, VReason(learning_rate=0.1), **inputs, **settings)
    cache = DynamicCache(config=sdpa.config.get_text_config())
    sdpa.generate(**placed(sdpa, inputs), max_new_tokens=1, **{CACHE: cache})
    cache.crop(-1)
    cached = {name: value for name, value in inputs.items() if "pixel" not in name}
    tokens, again = steer(sdpa, VReason(learning_rate=0.1), **cached, **{CACHE: cache}, **settings)
    assert torch.equal(tokens, expected)
    assert torch.allclose(delta(loop, 0), delta(again, 0), atol=1e-5)
