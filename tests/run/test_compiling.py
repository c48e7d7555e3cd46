"""``compile=on`` in a run: the same answers, and few graphs for prompts of many lengths.

The graphs are made by the ``aot_eager`` backend, which makes nothing faster.
"""

import pytest
import torch
from instances import answered, instances
from offline import write_video
from torch._dynamo.utils import counters
from transformers import CompileConfig

from lmms_eval_vreason.engines.hf import cache
from lmms_eval_vreason.engines.hf.due_step import compiled_due_step

WORDS = "what moves to the left in this video and what is its colour after it has turned once more"
SETTINGS = {"max_new_tokens": 10, "temperature": 0}


@pytest.fixture(autouse=True)
def nothing_compiled(monkeypatch):
    torch._dynamo.reset()
    counters.clear()
    compiled_due_step.cache_clear()
    # Small, so that the caches of short prompts have several lengths.
    monkeypatch.setattr(cache, "CACHE_STEP", 8)
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
def run(load, documents):
    def run(**arguments):
        model = load(journal="off", thinking="off", learning_rate=0.05, max_num_frames=4, on_error="raise", **arguments)
        model._model.generation_config.compile_config = CompileConfig(fullgraph=True, mode=None, backend="aot_eager")
        return answered(model, instances(model, documents, SETTINGS))

    return run


@pytest.mark.parametrize("batch_size", [1, 2])
def test_compiled_steps_answer_as_eager_ones(run, documents, batch_size):
    compiled = run(compile="on", batch_size=batch_size)
    # An ordinary and a due step for each prompt would be twice as many.
    assert 0 < counters["stats"]["unique_graphs"] < 2 * len(documents)
    assert not counters["graph_break"]
    assert compiled == run(compile="off", batch_size=batch_size)


def test_auto_compiles_nothing_by_itself_on_a_cpu(run):
    run(compile="auto")
    assert not counters["stats"]["unique_graphs"]
