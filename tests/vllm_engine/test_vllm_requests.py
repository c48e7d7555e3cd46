"""Budgets, settings, an engine process of its own, and the gradient."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoProcessor
from vllm_runs import (
    STEERED,
    TOKENS,
    answers,
    assert_equal_runs,
    by_transformers,
    engine,
    inputs_of,
    load,
    requests,
    worker_of,
)

from lmms_eval_vreason import VReason, generate
from lmms_eval_vreason.engines.vllm.engine import Settings
from lmms_eval_vreason.prompts.budgets import Budgets

LIMITS = {"max_thinking_tokens": 12, "max_answer_tokens": 6}


def test_budgets_are_the_other_engines(checkpoint):
    processor, model = AutoProcessor.from_pretrained(checkpoint), load(checkpoint)
    made = requests(processor, 3)
    with engine(checkpoint, STEERED) as built:
        for i, request in enumerate(made):
            built.submit(str(i), *request, Settings(budgets={"opened": False, **LIMITS}))
        finished = {int(each.key): each for each in built.finished()}
    for i, (text, media) in enumerate(made):
        inputs = inputs_of(model, processor, text, media)
        prompt = inputs["input_ids"].shape[1]
        budgets = Budgets(processor.tokenizer, [False], prompt, **LIMITS)
        with torch.no_grad():
            settings = {"max_new_tokens": budgets.max_new_tokens, "do_sample": False}
            result = generate(
                model,
                STEERED,
                **inputs,
                **settings,
                logits_processor=[budgets],
                stopping_criteria=[budgets.advance],
            )
        (tokens,), ours = result.new_tokens(prompt), finished[i]
        assert ours.tokens == tokens
        assert len(ours.trace.entropy) == len(tokens)
        assert np.allclose(ours.trace.entropy, result.traces[0].entropy, atol=1e-4)
        shown = processor.tokenizer.decode(tokens)
        assert ours.followed.outcome(shown, len(tokens)) == budgets.outcome(0, shown, len(tokens))
        assert ours.followed.outcome(shown, len(tokens)).thinking_cut


def test_an_engine_process_of_its_own_gives_the_same(checkpoint, monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    with engine(checkpoint, STEERED) as built:
        ours = answers(built, requests(AutoProcessor.from_pretrained(checkpoint), 6))
    assert_equal_runs(ours, by_transformers(checkpoint, STEERED))


def test_sixteen_requests_at_once(checkpoint):
    # The exact head: with rows, rounding decides now and then whether one token more takes part.
    method = VReason(head_topk=0)
    with engine(checkpoint, method) as built:
        ours = answers(built, requests(AutoProcessor.from_pretrained(checkpoint), 16), order=[*range(15, -1, -1)])
    assert_equal_runs(ours, by_transformers(checkpoint, method, count=16))


def test_seconds_are_shares_of_the_steps(checkpoint):
    with engine(checkpoint, STEERED) as built:
        runs = answers(built, requests(AutoProcessor.from_pretrained(checkpoint), 4))
    for tokens, trace in runs:
        assert trace.ordinary_steps + trace.due_steps == len(tokens) - 1
        assert min(trace.seconds_prefill, trace.seconds_ordinary, trace.seconds_due) > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [(Settings({"num_beams": 4}), "num_beams=4"), (Settings({"do_sample": True, "top_p": 3.0}), "top_p")],
)
def test_settings_that_cannot_be_are_refused(checkpoint, settings, message):
    with engine(checkpoint, STEERED) as built:
        request = requests(AutoProcessor.from_pretrained(checkpoint), 1)[0]
        with pytest.raises(ValueError, match=message):
            built.submit("0", *request, settings)
        with pytest.raises(ValueError, match="maximum context length"):
            built.submit("1", "word " * 2000, [], Settings())
        assert [len(tokens) for tokens, _ in answers(built, [request])] == [TOKENS]


def test_the_gradient_is_autograds_in_float64(checkpoint):
    """dL/dV, written out over the whole attention and the head, against what a packed due step makes of it."""
    seen = []
    with engine(checkpoint, STEERED) as built:
        steering = worker_of(built).vreason
        attend = steering._attend

        def attending(*args):
            reached = attend(*args)
            seen.append((steering.tail, reached))
            return reached

        steering._attend = attending
        answers(built, requests(AutoProcessor.from_pretrained(checkpoint), 3), tokens=6)
    tail, reached = max(seen, key=lambda item: len(item[1].p))
    assert len(reached.p) > 1
    weights = {name: weight.double() for name, weight in tail.weights.items()}
    head, values = tail.head.weight.double(), reached.values.double().requires_grad_()
    p, residual = reached.p.double(), reached.residual.double()
    mask = reached.video[:, None, None]
    rest = reached.exact.double() - (p * mask) @ values.detach()

    def norm(x, weight):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + tail.eps) * weight

    def entropy_of(v):
        a = (rest + (p * mask) @ v).flatten(1)
        x = residual + F.linear(a, weights["o"])
        gate, up = F.linear(norm(x, weights["norm_post"]), weights["gate_up"]).chunk(2, dim=-1)
        x = x + F.linear(F.silu(gate) * up, weights["down"])
        log_p = F.linear(norm(x, weights["norm_out"]), head).log_softmax(-1)
        return -(log_p.exp() * log_p).sum()

    with torch.inference_mode(False), torch.enable_grad():
        (expected,) = torch.autograd.grad(entropy_of(values), values)
    ours = packed_gradient(tail, reached)
    assert expected.norm() > 0
    assert (ours.double() - expected).norm() < 1e-4 * expected.norm()


def packed_gradient(tail, reached):
    """The gradient of the entropy in V as the due step's own functions give it."""
    from lmms_eval_vreason.engines.due_step import by_kv_head
    from lmms_eval_vreason.engines.head import Head
    from lmms_eval_vreason.engines.vllm.steering import PagedSeam
    from lmms_eval_vreason.method.entropy import entropy_of, log_probabilities

    logits = tail.logits(tail.hidden(reached.residual, reached.output.flatten(1)))
    seam = PagedSeam(tail, reached, logits)
    _, _, to_output = seam.forward({})
    log_p = log_probabilities(logits)
    # The objective is KL(p‖U) = log |V| - H.
    gradient = Head(tail, STEERED, logits).gradient(logits, log_p, entropy_of(log_p), -torch.ones(len(logits)))
    p = reached.p * reached.video[:, None, None]
    return p.transpose(2, 3) @ by_kv_head(to_output(gradient), p)
