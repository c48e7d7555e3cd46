"""Random methods on random inputs: at learning rate 0 plain ``generate``, at 0.01 finite, whatever comes."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_model import VIDEO, batch, placed, prompt, random_model

from lmms_eval_vreason import VReason

GRID = st.tuples(st.integers(1, 3), st.sampled_from([2, 4, 6]), st.sampled_from([2, 4, 6]))


@pytest.fixture(scope="module")
def models():
    """The smallest models that differ: precision and attention."""
    return {
        (dtype, attention): random_model(layers=2, dtype=dtype, attention=attention)
        for dtype in (torch.float32, torch.bfloat16)
        for attention in ("sdpa", "eager")
    }


@st.composite
def prompts(draw):
    def grids(most):
        return tuple(draw(st.lists(GRID, max_size=most)))

    return prompt(videos=grids(2), images=grids(1), text=draw(st.integers(1, 8)), seed=draw(st.integers(0, 1000)))


METHODS = st.fixed_dictionaries(
    {
        "policy": st.sampled_from(["switch", "minimize", "maximize", "random"]),
        "update_every": st.integers(1, 4),
        "ema_decay": st.sampled_from([0.0, 0.5, 0.98]),
        "optimizer": st.sampled_from(["adam", "sgd", "nsgd"]),
        "steps_per_update": st.integers(1, 2),
        "norm": st.sampled_from(["head", "token", "cache", "none"]),
        "min_entropy": st.sampled_from([0.0, 1e-4, 2.0]),
        "beta1": st.sampled_from([0.0, 0.9]),
        "ema_correction": st.booleans(),
        "head_tail": st.sampled_from([0.0, 0.01, 0.3]),
        "seed": st.integers(0, 5),
    }
)
HEADS = st.sampled_from([("kl_p_u", 0), ("kl_p_u", 7), ("kl_p_u", 500), ("kl_u_p", 500)])
# Whether logits are refreshed, and whether ΔV stays; without either there would be nothing.
LASTING = st.sampled_from([(True, True), (False, True), (True, False)])
LITE = st.tuples(st.sampled_from([0.0, 0.0, 0.5, 0.9]), st.sampled_from(["value_norm", "key_norm", "random"]))
SAMPLING = st.sampled_from(
    [{}, {"repetition_penalty": 1.05}, {"do_sample": True, "top_p": 0.9}, {"do_sample": True, "min_p": 0.05}]
)


@pytest.mark.slow
@given(
    samples=st.lists(prompts(), min_size=1, max_size=4),
    choices=st.tuples(METHODS, HEADS, LASTING),
    lite=LITE,
    sampling=SAMPLING,
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    attention=st.sampled_from(["sdpa", "eager"]),
    cache=st.sampled_from(["dynamic", "static"]),
    tokens=st.integers(1, 5),
)
@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
def test_any_method_on_any_input(models, samples, choices, lite, sampling, dtype, attention, cache, tokens):
    """Slow for its 200 examples, each of which is decoded three times."""
    model, inputs = models[dtype, attention], batch(samples, dtype)
    method, head, lasting = choices
    method |= dict(zip(("objective", "head_topk", "refresh", "keep_shift"), (*head, *lasting), strict=True))
    call = {**inputs, **sampling, "max_new_tokens": tokens, "cache_implementation": cache}

    def seeded(generate, *arguments):
        torch.manual_seed(0)
        return generate(*arguments, **call)

    plain = seeded(partial(model.generate, position_ids=placed(model, inputs)["position_ids"]))
    still = seeded(VReason(**method, learning_rate=0).generate, model)
    assert torch.equal(still.sequences, plain)
    assert all(trace.updates == 0 and not trace.shift.any() for trace in still.traces)
    ratio, score = lite
    lite_method = VReason(**method, prune_ratio=ratio, prune_score=score, learning_rate=0.01)
    result = seeded(lite_method.generate, model)
    assert result.sequences.shape[1] > inputs["input_ids"].shape[1]
    for trace, ids in zip(result.traces, inputs["input_ids"], strict=True):
        for column in (trace.entropy, trace.ema, trace.peak, trace.shift):
            assert np.isfinite(column).all()
        videos = int((ids == VIDEO).sum())
        assert trace.video_tokens == videos - int(videos * ratio)
        assert (trace.updates == 0) == bool(trace.note)
        assert np.isfinite(trace.grad_norm[trace.alpha != 0]).all()
