"""Shared fixtures: a tiny checkpoint, and the stock benchmarks on a machine without network."""

import os
from functools import partial

# Set before torch is imported anywhere: the models are tiny, and several test processes share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import Phase, settings

# For `make mutation`: a broken line's example need not be the smallest.
settings.register_profile("mutation", deadline=None, phases=(Phase.explicit, Phase.generate))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """Folder of a random Qwen2.5-VL checkpoint, float32, with the published checkpoints' repetition penalty."""
    from lmms_eval_vreason.shapes.architecture import random_checkpoint

    return random_checkpoint(tmp_path_factory.mktemp("checkpoint"), layers=3, repetition_penalty=1.05)


@pytest.fixture
def load(tiny_checkpoint, tmp_path):
    """Loads the model class on the tiny checkpoint, with a journal that all of a test's models share."""
    from lmms_eval_vreason.adapter.model import Qwen2_5_VL_VReason

    return partial(Qwen2_5_VL_VReason, pretrained=str(tiny_checkpoint), device="cpu", journal=str(tmp_path / "journal"))


@pytest.fixture(scope="session")
def offline(tmp_path_factory):
    """The six stock benchmarks' datasets and videos in a Hugging Face home of their own."""
    from offline import build

    return build(tmp_path_factory.mktemp("offline"))


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    """A random model in memory, under each attention that a CPU has."""
    from random_model import random_model

    return random_model(attention=request.param)


@pytest.fixture(scope="module")
def sdpa():
    """A random model in memory."""
    from random_model import random_model

    return random_model()
