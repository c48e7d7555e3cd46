"""Compiled decoding: the same tokens, one graph an ordinary step, one a due step, and no further one for other samples.

The graphs are made by the ``aot_eager`` backend: what is counted and compared here does not depend on the code
generator, which alone would take a minute.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from random_model import assert_same_run, batch, placed, prompt, random_model, values_scaled
from torch._dynamo.utils import counters
from transformers import CompileConfig, StaticCache

from lmms_eval_vreason import VReason
from lmms_eval_vreason.engines.hf.cache import static_cache
from lmms_eval_vreason.engines.hf.due_step import compiled_due_step

BACKEND = CompileConfig(fullgraph=True, mode=None, backend="aot_eager")
LENGTH = {"max_new_tokens": 14, "min_new_tokens": 14}
SAMPLES = [
    [prompt(seed=1)],
    [prompt(seed=2, videos=((2, 4, 6),), text=9)],
    [prompt(seed=3, videos=((2, 4, 4), (4, 4, 4)))],
]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    compiled_due_step.cache_clear()
    yield
    torch._dynamo.reset()


def both(model, method, inputs):
    eager = method(compile="off").generate(model, **inputs, **LENGTH)
    fast = method(compile="on").generate(model, **inputs, **LENGTH, compile_config=BACKEND)
    return eager, fast


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"refresh": False, "keep_shift": True, "steps_per_update": 2, "policy": "random"},
        {"head_tail": 0.3},
        {"head_topk": 0, "norm": "cache", "keep_shift": True, "optimizer": "adam", "ema_correction": True},
        {"keep_shift": True, "optimizer": "adam", "beta1": 0.9},
    ],
    ids=["default", "steps", "tail", "exact", "kept"],
)
def test_tokens_and_traces_are_those_of_eager_decoding(settings):
    model = random_model(layers=2)
    inputs = batch([prompt(seed=1), prompt(seed=2, videos=((2, 4, 6),), text=9), prompt(seed=3, text=3)])
    eager, fast = both(model, lambda **kw: VReason(learning_rate=0.05, **settings, **kw), inputs)
    assert torch.equal(eager.sequences, fast.sequences)
    for one, other in zip(eager.traces, fast.traces, strict=True):
        assert one.updates == other.updates > 0
        assert (one.alpha == other.alpha).all()
        for name in ("entropy", "ema", "shift"):
            assert abs(getattr(one, name) - getattr(other, name)).max() < 1e-4, name
        assert np.array_equal(one.changed, other.changed, equal_nan=True)


@pytest.mark.parametrize("choices", [{}, {"optimizer": "adam", "keep_shift": True}], ids=["default", "kept"])
def test_one_rate_turns_every_model_alike_when_compiled(choices):
    inputs = batch([prompt(seed=1), prompt(seed=2, videos=((2, 4, 6),), text=9)])
    method = VReason(compile="on", update_every=1, **choices)
    results = [
        method.generate(values_scaled(random_model(layers=2), s), **inputs, **LENGTH, compile_config=BACKEND)
        for s in (1 / 64, 1, 64)
    ]
    assert_same_run(results)


def test_two_graphs_serve_every_sample():
    model = random_model(layers=2)
    for index, sample in enumerate(SAMPLES * 2):
        eager, fast = both(model, lambda **kw: VReason(learning_rate=0.05, **kw), batch(sample))
        assert torch.equal(eager.sequences, fast.sequences)
        assert counters["stats"]["unique_graphs"] == 2, f"sample {index}"
    assert not counters["graph_break"]


def test_the_ordinary_graph_sees_the_moved_values():
    model = random_model(layers=2)
    still = VReason(policy="off", compile="on").generate(model, **batch(SAMPLES[0]), **LENGTH, compile_config=BACKEND)
    moved = VReason(learning_rate=0.5, keep_shift=True, compile="on").generate(
        model, **batch(SAMPLES[0]), **LENGTH, compile_config=BACKEND
    )
    # Token 2 (from 0) is an ordinary step after the first update; its entropy can only differ through the cache.
    assert moved.traces[0].alpha[2] == 0
    assert abs(moved.traces[0].entropy[2] - still.traces[0].entropy[2]) > 1e-3


def test_lite_prunes_a_compiled_cache_too():
    eager, fast = both(random_model(layers=2), lambda **kw: VReason(prune_ratio=0.5, **kw), batch(SAMPLES[2]))
    assert torch.equal(eager.sequences, fast.sequences)
    assert fast.traces[0].video_tokens == eager.traces[0].video_tokens == 12


def test_compiled_steps_have_the_trained_positions():
    """They are those of the eager steps, which tests/families watches; transformers' give other entropies."""
    model = random_model(layers=2)
    inputs = batch([prompt(seed=2, videos=((4, 4, 4),), text=3)])
    inputs["second_per_grid_ts"] = torch.tensor([7.5])
    for method in (VReason(policy="off", compile="on"), VReason(learning_rate=0.1, compile="on")):
        trained, stock = (
            method.generate(model, **inputs, **LENGTH, compile_config=BACKEND, positions=positions)
            for positions in ("trained", "transformers")
        )
        eager = replace(method, compile="off").generate(model, **inputs, **LENGTH)
        assert torch.equal(eager.sequences, trained.sequences)
        assert abs(eager.traces[0].entropy - trained.traces[0].entropy).max() < 1e-4
        assert abs(stock.traces[0].entropy - trained.traces[0].entropy).max() > 1e-3


def test_off_is_plain_static_generation():
    model = random_model(layers=2)
    plain = model.generate(**placed(model, batch(SAMPLES[1])), **LENGTH)
    result = VReason(policy="off", compile="on").generate(model, **batch(SAMPLES[1]), **LENGTH, compile_config=BACKEND)
    assert torch.equal(plain, result.sequences)


def test_a_length_that_nobody_knows_is_an_error():
    model = random_model(layers=2)
    model.generation_config.max_new_tokens = None
    with pytest.raises(ValueError, match="pass max_new_tokens"):
        VReason(compile="on").generate(model, **batch(SAMPLES[0]))
    assert isinstance(static_cache(model, 1500), StaticCache)
    assert static_cache(model, 1500).layers[0].max_cache_len == 2048
