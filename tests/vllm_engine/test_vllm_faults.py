"""Where steering is lost, the engine stops: each of these faults is injected into a run that would go on without it."""

import pytest
import torch
from vllm_runs import STEERED, answers, engine, requests, worker_of

from lmms_eval_vreason import VReason
from lmms_eval_vreason.engines.vllm import runner

KEPT = VReason(keep_shift=True, optimizer="adam", learning_rate=0.3)


def made(checkpoint, count=3):
    from transformers import AutoProcessor

    return requests(AutoProcessor.from_pretrained(checkpoint), count)


def after(steering, steps, action):
    """Runs ``action`` once, before the step after ``steps`` of them."""
    schedule, seen = steering.schedule, []

    def scheduled(output):
        seen.append(1)
        schedule(output)
        if len(seen) == steps:
            action()

    steering.schedule = scheduled


def hook_gone(worker):
    after(worker.vreason, 5, worker.vreason_hook.remove)


def pages_rewritten(worker):
    after(worker.vreason, 8, lambda: in_inference_mode(worker.vreason.pages.v.mul_, 1.5))


def buffer_stale(worker):
    """As if a graph did not hold the copy: the buffer has what another step left."""
    model = worker.model_runner.model
    forward = model.forward

    def forgetting(*args, **kwargs):
        before = model.residual.clone()
        final = forward(*args, **kwargs)
        model.residual.copy_(before)
        return final

    model.forward = forgetting


def positions_stale(worker):
    model = worker.model_runner.model
    forward = model.forward

    def shifted(*args, **kwargs):
        final = forward(*args, **kwargs)
        model.positions[0] += 7
        return final

    model.forward = shifted


def request_unknown(worker):
    requests = worker.vreason.requests
    after(worker.vreason, 5, lambda: requests._running.pop(next(iter(requests._running))))


def count_ahead(worker):
    requests = worker.vreason.requests

    def ahead():
        next(iter(requests._running.values())).computed += 1

    after(worker.vreason, 5, ahead)


def tokens_missed(worker):
    steering = worker.vreason
    note = steering.requests.note

    def noting(requests, figures):
        note(requests, figures)
        steering.requests._flush()
        for request in requests:
            if request.tokens == 6:
                request.figures.pop()

    steering.requests.note = noting


def tables_of_others(worker):
    steering = worker.vreason
    sampled = steering._sampled
    steering._sampled = lambda requests, rows, logits: sampled(
        requests, rows._replace(tables=rows.tables.roll(1, dims=0)), logits
    )


def weights_replaced(worker):
    weights = worker.vreason.tail.weights
    weights["o"] = weights["o"] * 1.01


def restore_skipped(worker):
    """As if V_new had not been written: the pages hold V."""
    worker.vreason._write = lambda reached: None


def in_inference_mode(function, *args):
    with torch.inference_mode():
        function(*args)


FAULTS = [
    (hook_gone, STEERED, "without the method's hook"),
    (pages_rewritten, STEERED, "not those that were there"),
    (pages_rewritten, KEPT, "not those that were there"),
    (restore_skipped, KEPT, "not those that were there"),
    (buffer_stale, STEERED, "does not give the model's own hidden state"),
    (positions_stale, STEERED, "does not give the model's own hidden state"),
    (weights_replaced, STEERED, "does not give the model's own hidden state"),
    (tables_of_others, STEERED, "does not give the model's own hidden state"),
    (request_unknown, STEERED, "the scheduler never told of it"),
    (count_ahead, STEERED, "was seen to sample"),
    (tokens_missed, STEERED, "tokens of .* were seen"),
]


@pytest.mark.parametrize(
    ("fault", "method", "message"), FAULTS, ids=[f"{f.__name__} {m.keep_shift}" for f, m, _ in FAULTS]
)
def test_lost_steering_stops_the_engine(checkpoint, fault, method, message):
    with engine(checkpoint, method) as built:
        fault(worker_of(built))
        with pytest.raises(RuntimeError, match=message):
            answers(built, made(checkpoint))


def test_another_model_class_is_refused(checkpoint):
    from vllm import LLM

    from lmms_eval_vreason.engines.vllm import engine_args

    arguments = engine_args(STEERED, model=str(checkpoint), dtype="float32", max_model_len=512)
    arguments["hf_overrides"] = {}
    with pytest.raises(TypeError, match="steering lost: the model is a Qwen2_5_VLForConditionalGeneration"):
        LLM(**arguments, gpu_memory_utilization=0.3)


def test_every_internal_that_is_bound_is_asked_for(checkpoint, monkeypatch):
    with engine(checkpoint, STEERED) as built:
        worker = worker_of(built)
        runner.check_bound(worker)
        for path in runner._BOUND:
            with monkeypatch.context() as patch:
                patch.setattr(runner, "_BOUND", (f"{path}_renamed",))
                with pytest.raises(RuntimeError, match=f"has no worker.{path}_renamed"):
                    runner.check_bound(worker)
