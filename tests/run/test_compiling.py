"""``compile=auto``: a trial decides, on the first batch; what it decides changes no answer and stops no run.

The graphs are made by the ``aot_eager`` backend, which makes nothing faster: that is left to the trial's measurement.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from instances import answered, instances
from offline import write_video
from torch._dynamo.utils import counters
from transformers import CompileConfig

import lmms_eval_vreason
from lmms_eval_vreason.engines.hf import Generation, cache, generation
from lmms_eval_vreason.engines.hf.due_step import compiled_due_step
from lmms_eval_vreason.run import autocompile as compiling
from lmms_eval_vreason.run.generation import Generator

WORDS = "what moves to the left in this video and what is its colour after it has turned once more"
SETTINGS = {"max_new_tokens": 10, "temperature": 0}
STEP = 8


@pytest.fixture(autouse=True)
def a_place_where_compiling_may_pay(monkeypatch):
    torch._dynamo.reset()
    counters.clear()
    compiled_due_step.cache_clear()
    monkeypatch.setattr(compiling, "may_pay", lambda model, device: True)
    monkeypatch.setattr(compiling, "MIN_STEPS", 1)
    # Small ones, so that the caches of short prompts have several lengths.
    for module in (cache, compiling):
        monkeypatch.setattr(module, "CACHE_STEP", STEP)
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    videos = []
    for index, size in enumerate([(64, 48), (140, 84), (224, 168)]):
        videos.append(str(write_video(folder / f"{index}.mp4", size=size)))
    return [{"video": videos[i % 3], "text": " ".join(WORDS.split()[: 4 + 3 * i])} for i in range(5)]


@pytest.fixture
def run(load, documents, monkeypatch):
    """Answers all documents: (the answers, the run's :class:`AutoCompile`)."""
    made = []
    begin = compiling.AutoCompile.__init__

    def noting(self, *given):
        begin(self, *given)
        made.append(self)

    monkeypatch.setattr(compiling.AutoCompile, "__init__", noting)
    monkeypatch.setattr(compiling, "_GAIN", 0.0)

    def run(**arguments):
        model = load(journal="off", thinking="off", learning_rate=0.05, max_num_frames=4, **arguments)
        model._model.generation_config.compile_config = CompileConfig(fullgraph=True, mode=None, backend="aot_eager")
        return answered(model, instances(model, documents, SETTINGS)), made[-1]

    return run


@pytest.fixture
def methods(monkeypatch):
    """The ``compile`` and the prompt length of each generation."""
    seen = []
    call = generation.generate

    def noting(model, method, **inputs):
        seen.append((method.compile, inputs["input_ids"].shape[1], inputs["max_new_tokens"]))
        return call(model, method, **inputs)

    # The run's way is VReason.generate, which takes the package's.
    for module in (compiling, lmms_eval_vreason):
        monkeypatch.setattr(module, "generate", noting, raising=False)
    return seen


@pytest.fixture
def told(monkeypatch):
    """Takes the place of the trial's measurement, which would compile: says its seconds and entropies."""

    def told(compiled=1.0, eager=1.0, entropies=(2.0, 2.0)):
        def generation(seconds, entropy):
            trace = SimpleNamespace(entropy=np.full(5, entropy), seconds_ordinary=seconds, seconds_due=seconds)
            return Generation(torch.zeros(1, 9), [trace])

        both = generation(compiled, entropies[0]), generation(eager, entropies[1])
        monkeypatch.setattr(compiling.AutoCompile, "_both", lambda *given: both)
        monkeypatch.setattr(compiling, "_GAIN", 1.05)

    return told


def in_the_run(methods):
    return [mode for mode, _, tokens in methods if tokens == SETTINGS["max_new_tokens"]]


def test_prompts_of_mixed_lengths_are_served_by_the_trials_graphs(run, methods, monkeypatch):
    """The trial compiles; the run after it does not, whatever its prompts' lengths."""
    graphs = []
    answer = Generator._answer

    def counting(self, samples, media, method):
        graphs.append(counters["stats"]["unique_graphs"])
        return answer(self, samples, media, method)

    monkeypatch.setattr(Generator, "_answer", counting)
    results, auto = run(shared_prefix="off")
    assert auto.batch == 1
    assert [mode for mode, _, _ in methods] == ["off", "off", *["on"] * 8]
    lengths = {-(-(length + tokens) // STEP) for _, length, tokens in methods[5:]}
    assert len(lengths) >= 3
    assert len(set(graphs)) == 1
    assert counters["stats"]["unique_graphs"] == graphs[0]
    assert not counters["graph_break"]
    assert results == run(compile="off")[0]


def test_only_full_batches_are_compiled(run, methods):
    """Their questions share the starts of their prompts, whose caches go on in compiled steps."""
    results, auto = run(batch_size=2)
    assert auto.batch == 2
    assert in_the_run(methods) == ["on", "on", "auto"]
    assert results == run(compile="off", batch_size=2)[0]


@pytest.mark.parametrize("measured", [{"compiled": 0.97}, {"entropies": (2.0, 2.2)}], ids=["no faster", "not the same"])
def test_what_does_not_pay_is_not_compiled(run, methods, told, measured):
    told(**measured)
    _, auto = run()
    assert auto.batch is None
    assert in_the_run(methods) == ["auto"] * 5


@pytest.mark.parametrize(
    ("steps", "arguments"), [(51, {}), (1, {"batch_size": "auto"})], ids=["a short run", "a batch that may grow"]
)
def test_where_there_is_no_trial(run, methods, told, monkeypatch, steps, arguments):
    told(compiled=0.1)
    monkeypatch.setattr(compiling, "MIN_STEPS", steps)
    assert run(**arguments)[1].batch is None
    assert set(in_the_run(methods)) == {"auto"}


@pytest.mark.parametrize("at", ["the trial", "a later batch"])
def test_a_failure_to_compile_does_not_stop_the_run(run, told, monkeypatch, at):
    calls = []

    def failing(*given):
        calls.append(1)
        raise RuntimeError("no compiler here")

    expected, _ = run(compile="off")
    with monkeypatch.context() as patch:
        if at == "the trial":
            patch.setattr(compiling, "static_cache", failing)
        else:
            told(compiled=0.1)
            patch.setattr(generation, "static_cache", failing)  # There the run's own caches are made.
        results, auto = run()
    assert len(calls) == 1
    assert auto.batch is None
    assert results == expected


def test_where_a_trial_makes_sense(monkeypatch, sdpa):
    monkeypatch.undo()
    cuda = torch.device("cuda")
    assert compiling.may_pay(sdpa, cuda)
    assert not compiling.may_pay(sdpa, torch.device("cpu"))
    monkeypatch.setattr(sdpa, "hf_device_map", {"model": 0, "lm_head": 1}, raising=False)
    assert not compiling.may_pay(sdpa, cuda)
