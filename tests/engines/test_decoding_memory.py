"""Memory: no graph outlives its step, and between steps there is the controller's state and nothing more."""

import gc
import weakref

import pytest
import torch
from random_model import VIDEO, batch, prompt, random_model, steer
from transformers import LogitsProcessorList

from lmms_eval_vreason import VReason
from lmms_eval_vreason.engines.hf.steering import Steering

SAMPLES = [prompt(seed=1, videos=((4, 8, 8),)), prompt(seed=2, videos=((2, 8, 8),), text=11)]
METHODS = {
    "default": VReason(update_every=1),
    "deep": VReason(update_every=1, layers=2, steps_per_update=2, first_token=True),
    "no refresh": VReason(update_every=1, refresh=False, head_topk=16),
}


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture(autouse=True)
def _only_what_a_test_makes():
    """Sets aside all that lives already, so that looking through the rest takes no time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def tensors():
    gc.collect()
    return [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]


class AfterEachStep:
    """A logits processor, called between the steps, that notes what ``look`` sees there."""

    def __init__(self, look):
        self.look, self.seen = look, []

    def __call__(self, input_ids, scores):
        self.seen.append(self.look())
        return scores


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_no_graph_survives_the_step(model, monkeypatch, method, cache):
    """No tensor with a history is alive between steps, and what a due step captured is gone."""
    alive = []

    def noting(function):
        def wrapped(*args, **kwargs):
            result = function(*args, **kwargs)
            tail = result[1] if isinstance(result, tuple) else result
            captured = [tail.logits, tail.hidden, *tail.leaves, *tail.args[:1]]
            alive.extend(weakref.ref(thing) for thing in captured if thing is not None)
            return result

        return wrapped

    for name in ("forward", "rerun"):
        monkeypatch.setattr(Steering, name, noting(getattr(Steering, name)))

    def look():
        histories = [t for t in tensors() if t.grad_fn is not None or (t.requires_grad and t.is_leaf)]
        return len(histories), sum(reference() is not None for reference in alive)

    processor = AfterEachStep(look)
    before = len([p for p in model.parameters() if p.requires_grad])
    method.generate(
        model,
        **batch(SAMPLES),
        max_new_tokens=5,
        eos_token_id=None,
        cache_implementation=cache,
        logits_processor=LogitsProcessorList([processor]),
    )
    assert before > 0
    assert len(alive) >= 4 * 3
    assert processor.seen == [(0, 0)] * 5


def storage_bytes(things):
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in things}.values())


def bytes_between_steps(model, method, dtype):
    """Live tensors' bytes after each of five steps, and the steering's own count."""
    processor = AfterEachStep(lambda: storage_bytes(tensors()))
    _, loop = steer(
        model,
        method,
        **batch(SAMPLES, dtype),
        max_new_tokens=6,
        eos_token_id=None,
        logits_processor=LogitsProcessorList([processor]),
    )
    return processor.seen[1:], loop.steering.state_bytes() if loop.steering else 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("layers", [1, 2])
def test_bytes_kept_between_steps(dtype, optimizer, layers):
    """Counted over all live tensors, against a run without steering: the controllers' state, by the formula.

    V in the cache's dtype, ΔV and Adam's two moments in float32, for each value of each video token; what indexes them
    (three numbers a token, a few a sample) and ‖V‖ (one a token and KV head) are all that comes on top.
    """
    model = random_model(dtype=dtype)
    method = VReason(optimizer=optimizer, layers=layers, update_every=1)
    base, _ = bytes_between_steps(model, VReason(policy="off"), dtype)
    ours, state = bytes_between_steps(model, method, dtype)
    growth = [mine - theirs for mine, theirs in zip(ours, base, strict=True)]
    tokens = sum(p["ids"].count(VIDEO) for p in SAMPLES)
    values = tokens * 2 * 8 * layers
    formula = values * (dtype.itemsize + 4 * (3 if optimizer == "adam" else 1))
    index = layers * (tokens * (8 + 8 + 4 + 2 * 4) + 256)
    assert formula < state <= formula + index
    # What the trace notes of an update: seven numbers a sample.
    trace = 5 * 7 * 4 * len(SAMPLES)
    assert max(growth) <= state + trace + 64
    assert min(growth) >= formula


def test_nothing_is_left_when_the_result_is_gone(model):
    """Neither the model nor the package holds on to a generation."""
    VReason().generate(model, **batch(SAMPLES), max_new_tokens=4)
    before = storage_bytes(tensors())
    for _ in range(3):
        VReason(layers=2, prune_ratio=0.5, first_token=True).generate(model, **batch(SAMPLES), max_new_tokens=4)
    assert storage_bytes(tensors()) <= before + 64
