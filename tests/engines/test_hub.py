"""``hub/vreason`` gives the package's own tokens, and the library's path needs no lmms-eval."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from random_model import batch, prompt
from transformers import dynamic_module_utils

from lmms_eval_vreason import Generation, VReason, generate

TESTS = Path(__file__).parents[1]
FOLDER = str(TESTS.parent / "hub" / "vreason")
INPUTS = batch([prompt(seed=1), prompt(seed=2, videos=((2, 4, 6),), text=11)])
METHOD = {"policy": "minimize", "learning_rate": 8.0, "min_entropy": 0.0}
WITHOUT_LMMS_EVAL = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "lmms_eval":
            raise ModuleNotFoundError(f"blocked: {name}")

sys.meta_path.insert(0, Blocked())
from random_model import batch, prompt, random_model
from lmms_eval_vreason import VReason, generate

result = generate(random_model(), VReason(), **batch([prompt(seed=1)]), max_new_tokens=4)
assert "lmms_eval" not in sys.modules
print(result.sequences.tolist())
"""


@pytest.fixture
def from_hub(sdpa, tmp_path, monkeypatch):
    """``model.generate`` with the folder; transformers copies its file to a cache, here a temporary one."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(**kwargs):
        return sdpa.generate(
            **{**INPUTS, "max_new_tokens": 12, **kwargs}, custom_generate=FOLDER, trust_remote_code=True
        )

    return run


@pytest.mark.parametrize(
    "sampling", [{}, {"do_sample": True, "temperature": 0.9, "min_p": 0.1}], ids=["greedy", "min_p"]
)
@pytest.mark.parametrize("positions", ["trained", "transformers"])
def test_tokens_are_the_packages(sdpa, from_hub, sampling, positions):
    torch.manual_seed(5)
    own = generate(sdpa, VReason(**METHOD), **INPUTS, max_new_tokens=12, positions=positions, **sampling)
    torch.manual_seed(5)
    assert torch.equal(from_hub(**METHOD, positions=positions, **sampling), own.sequences)
    torch.manual_seed(5)
    base = generate(sdpa, VReason(policy="off"), **INPUTS, max_new_tokens=12, positions=positions, **sampling)
    assert not torch.equal(base.sequences, own.sequences)


def test_prompt_by_position_and_traces(sdpa, from_hub):
    own = generate(sdpa, VReason(**METHOD), **INPUTS, max_new_tokens=12)
    result = from_hub(**METHOD, input_ids=None, inputs=INPUTS["input_ids"], return_dict_in_generate=True)
    assert isinstance(result, Generation)
    assert torch.equal(result.sequences, own.sequences)
    for trace, expected in zip(result.traces, own.traces, strict=True):
        assert list(trace.entropy) == list(expected.entropy)


def test_unknown_argument(from_hub):
    with pytest.raises(TypeError, match=r"no argument of V-Reason or of generate: polcy\. V-Reason's are .*policy"):
        from_hub(polcy="switch")


def test_refusals_are_the_packages(from_hub):
    with pytest.raises(ValueError, match="num_beams=4 does not go with V-Reason"):
        from_hub(num_beams=4)


def test_without_lmms_eval(sdpa):
    paths = [str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_LMMS_EVAL],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    own = generate(sdpa, VReason(), **batch([prompt(seed=1)]), max_new_tokens=4)
    assert result.stdout.strip() == str(own.sequences.tolist())
