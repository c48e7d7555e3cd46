"""Memory: no graph outlives its step, and between steps there is ΔV's state and nothing more."""

import gc
import weakref

import pytest
import torch
from random_model import VIDEO, batch, prompt, random_model, steer
from transformers import LogitsProcessorList

from lmms_eval_vreason import VReason
from lmms_eval_vreason.engines.hf.seam import Seam

SAMPLES = [prompt(seed=1, videos=((4, 8, 8),)), prompt(seed=2, videos=((2, 8, 8),), text=11)]
METHODS = {
    "default": VReason(update_every=1),
    "steps": VReason(update_every=1, steps_per_update=2),
    "no refresh": VReason(update_every=1, refresh=False, keep_shift=True, head_topk=16),
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
            captured = [result[0].output, result[0].query] if isinstance(result, tuple) else [result]
            alive.extend(weakref.ref(thing) for thing in captured)
            return result

        return wrapped

    for name in ("forward", "hidden"):
        monkeypatch.setattr(Seam, name, noting(getattr(Seam, name)))

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
    assert len(alive) >= 4 * 2
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
    return processor.seen[1:], loop.decoding.steering.shift.state_bytes() if method.steers else 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("choices", "moments"),
    [
        ({}, 0),
        *(
            ({"optimizer": "adam", "keep_shift": True, "beta1": beta}, moments)
            for beta, moments in ((0.0, 1), (0.9, 2))
        ),
    ],
    ids=str,
)
def test_bytes_kept_between_steps(dtype, choices, moments):
    """Counted over all live tensors, against a run without steering: ΔV's state, by the formula.

    V in the cache's dtype, ΔV and Adam's moments in float32, for each value of each column from the first video token
    of any sample to the last; ‖V‖ and the unit (one a column and KV head), a flag and a number a column, and a few
    numbers a sample are all that comes on top.
    """
    model = random_model(dtype=dtype)
    method = VReason(update_every=1, **choices)
    base, _ = bytes_between_steps(model, VReason(policy="off"), dtype)
    ours, state = bytes_between_steps(model, method, dtype)
    growth = [mine - theirs for mine, theirs in zip(ours, base, strict=True)]
    video = (batch(SAMPLES)["input_ids"] == VIDEO).any(0).nonzero()
    columns = len(SAMPLES) * int(video.max() - video.min() + 1)
    values = columns * 2 * 8
    formula = values * (dtype.itemsize + 4 * (1 + moments))
    index = columns * (1 + 4 + 2 * 2 * 4) + 256
    assert formula < state <= formula + index
    # What the trace notes of an update: eight numbers a sample.
    trace = 5 * 8 * 4 * len(SAMPLES)
    assert max(growth) <= state + trace + 64
    assert min(growth) >= formula


def test_nothing_is_left_when_the_result_is_gone(model):
    """Neither the model nor the package holds on to a generation."""
    VReason().generate(model, **batch(SAMPLES), max_new_tokens=4)
    before = storage_bytes(tensors())
    for _ in range(3):
        VReason(prune_ratio=0.5).generate(model, **batch(SAMPLES), max_new_tokens=4)
    assert storage_bytes(tensors()) <= before + 64
