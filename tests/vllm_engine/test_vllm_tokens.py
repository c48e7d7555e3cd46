"""vLLM gives the transformers engine's tokens and traces, whatever the engine does with its batch."""

import numpy as np
import pytest
from vllm_runs import (
    STEERED,
    TOKENS,
    answers,
    assert_equal_runs,
    by_transformers,
    by_vllm,
    engine,
    qwen3_checkpoint,
    requests,
    worker_of,
)

from lmms_eval_vreason import VReason
from lmms_eval_vreason.shapes import checkpoint_dir

METHODS = {
    "default": STEERED,
    "minimize, 3 steps": VReason(policy="minimize", steps_per_update=3, update_every=1),
    "head rows": VReason(policy="minimize", head_topk=700, head_tail=0.2),
    "random, exact": VReason(policy="random", objective="kl_u_p", optimizer="sgd", norm="none", ema_correction=True),
    "kept, Adam": VReason(keep_shift=True, optimizer="adam", beta1=0.9, learning_rate=0.3),
    "kept, no refresh": VReason(keep_shift=True, refresh=False, norm="token", update_every=3),
}


@pytest.fixture(scope="module")
def expected(checkpoint):
    """The transformers engine's runs, each made once."""
    made = {}

    def run(name):
        if name not in made:
            made[name] = by_transformers(checkpoint, METHODS[name])
        return made[name]

    return run


def test_the_model_has_at_least_three_nats(expected):
    entropy = np.concatenate([trace.entropy for _, trace in expected("default")])
    assert entropy.mean() > 3
    assert entropy.min() < 5.5


@pytest.mark.parametrize("name", METHODS)
def test_tokens_and_traces_are_the_other_engines(checkpoint, expected, name):
    assert_equal_runs(by_vllm(checkpoint, METHODS[name]), expected(name))


@pytest.mark.parametrize("name", ["default", "kept, Adam"])
def test_qwen3_vl_gives_the_other_engines_tokens(tmp_path, name):
    folder = qwen3_checkpoint(tmp_path)
    assert_equal_runs(by_vllm(folder, METHODS[name]), by_transformers(folder, METHODS[name]))


@pytest.mark.parametrize("name", ["default", "kept, Adam"])
def test_chunked_prefill_and_another_order_change_nothing(checkpoint, expected, name):
    ours = by_vllm(checkpoint, METHODS[name], order=[4, 1, 5, 0, 3, 2], max_num_batched_tokens=24, max_num_seqs=3)
    assert_equal_runs(ours, expected(name))


@pytest.mark.parametrize("name", ["default", "kept, Adam"])
def test_preemption_changes_nothing(checkpoint, expected, name):
    small = {"num_gpu_blocks_override": 11, "block_size": 32, "max_model_len": 256}
    with engine(checkpoint, METHODS[name], **small) as built:
        steering, resumed = worker_of(built).vreason, []
        schedule = steering.schedule

        def counting(output):
            resumed.extend(output.scheduled_cached_reqs.resumed_req_ids)
            schedule(output)

        steering.schedule = counting
        ours = answers(built, made(checkpoint))
    assert resumed
    assert_equal_runs(ours, expected(name))


def made(checkpoint):
    from transformers import AutoProcessor

    return requests(AutoProcessor.from_pretrained(checkpoint), 6)


def test_one_at_a_time_is_all_at_once(checkpoint, expected):
    assert_equal_runs(by_vllm(checkpoint, STEERED, max_num_seqs=1), expected("default"))


def test_a_video_asked_about_again_is_prefilled_once(checkpoint, expected):
    with engine(checkpoint, STEERED, block_size=32) as built:
        first = answers(built, made(checkpoint))
        again = list(built_again(built, made(checkpoint)))
    assert_equal_runs(first, expected("default"))
    assert sum(each.cached_tokens >= 32 for each in again) >= 4
    assert_equal_runs([(each.tokens, each.trace) for each in again], first)


def built_again(built, made):
    from lmms_eval_vreason.engines.vllm.engine import Settings

    for i, request in enumerate(made):
        built.submit(str(i), *request, Settings({"max_new_tokens": TOKENS}))
    return sorted(built.finished(), key=lambda each: int(each.key))


@pytest.mark.parametrize("method", [VReason(policy="off"), VReason(learning_rate=0.0)], ids=["off", "rate 0"])
def test_without_steps_it_is_plain_vllm(checkpoint, method):
    from vllm import LLM, SamplingParams

    from lmms_eval_vreason.engines.vllm.engine import _prompt

    ours = by_vllm(checkpoint, method)
    settings = {"dtype": "float32", "max_model_len": 512, "gpu_memory_utilization": 0.3, "enforce_eager": True}
    plain = LLM(model=str(checkpoint), **settings)
    params = SamplingParams(temperature=0.0, max_tokens=TOKENS, repetition_penalty=1.05)
    outputs = plain.generate([_prompt(*request) for request in made(checkpoint)], params, use_tqdm=False)
    assert [tokens for tokens, _ in ours] == [list(output.outputs[0].token_ids) for output in outputs]
    assert {trace.updates for _, trace in ours} == {0}


@pytest.mark.parametrize("method", [STEERED, VReason(policy="switch", min_entropy=0.0)], ids=["default", "no gate"])
def test_shapes_gives_the_other_engines_tokens(method):
    folder = checkpoint_dir()
    ours, theirs = by_vllm(folder, method, tokens=60), by_transformers(folder, method, tokens=60)
    assert [tokens for tokens, _ in ours] == [tokens for tokens, _ in theirs]
    for (_, trace), (_, other) in zip(ours, theirs, strict=True):
        assert np.allclose(trace.entropy, other.entropy, atol=1e-4)
        assert trace.updates == other.updates
