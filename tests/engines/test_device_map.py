"""A model whose layers lie on several devices: the last layer, norm and head elsewhere than the prompt."""

import pytest
import torch
import torch._lazy.ts_backend
from accelerate import dispatch_model
from random_model import batch, prompt, random_model

from lmms_eval_vreason import VReason
from lmms_eval_vreason.adapter.loading import choose_device, choose_dtype, find_checkpoint, load_model
from lmms_eval_vreason.adapter.model import Qwen2_5_VL_VReason
from lmms_eval_vreason.adapter.options import ModelOptions

PARTS = ["model.visual", "model.language_model.embed_tokens", "model.language_model.rotary_emb"]
PARTS += [f"model.language_model.layers.{i}" for i in range(3)] + ["model.language_model.norm", "lm_head"]


@pytest.fixture(scope="module")
def second_device():
    """A device that is not the CPU and needs no GPU: torch's lazy backend runs on the CPU, and mixes with it no more
    than a GPU does."""
    torch._lazy.ts_backend.init()
    nonzero = torch.Tensor.nonzero

    def moved(self, *, as_tuple=False):
        # That backend's own answer cannot be used as an index.
        found = nonzero(self.cpu(), as_tuple=as_tuple)
        return tuple(index.to(self.device) for index in found) if as_tuple else found.to(self.device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "nonzero", moved)
        yield "lazy:0"


@pytest.mark.parametrize(
    "options", [{}, {"steps_per_update": 2, "head_topk": 16, "prune_ratio": 0.5}], ids=["plain", "more"]
)
def test_the_last_layer_may_lie_on_another_device(second_device, options):
    # SGD, because the lazy backend lacks an operation that Adam needs.
    method = VReason(optimizer="sgd", learning_rate=30.0, min_entropy=0.0, **options)
    inputs = batch([prompt(seed=1), prompt(videos=((2, 6, 4),), seed=2, text=9)])
    places = {part: "cpu" if number < 5 else second_device for number, part in enumerate(PARTS)}
    model = random_model()
    spread = dispatch_model(
        random_model(), places, main_device="cpu", skip_keys=model._skip_keys_device_placement, force_hooks=True
    )
    assert spread.lm_head.weight.device.type == "lazy"
    assert spread.get_input_embeddings().weight.device.type == "cpu"
    one, two = (method.generate(m, **inputs, max_new_tokens=6, do_sample=False) for m in (model, spread))
    assert torch.equal(one.sequences, two.sequences)
    for alone, apart in zip(one.traces, two.traces, strict=True):
        assert alone.updates == apart.updates > 0
        assert apart.shift[-1] > 1e-3
        torch.testing.assert_close(torch.tensor(alone.entropy), torch.tensor(apart.entropy), atol=1e-4, rtol=1e-4)


@pytest.fixture
def checkpoint(tiny_checkpoint):
    return find_checkpoint(ModelOptions(pretrained=str(tiny_checkpoint)))


def test_parts_on_the_disk_are_refused(checkpoint):
    places = dict.fromkeys(PARTS, "cpu")
    options = ModelOptions().model_copy(update={"device_map": places})
    assert load_model(checkpoint, options, torch.device("cpu")).lm_head.weight.device.type == "cpu"
    with pytest.raises(ValueError, match="parts of it lie on: disk"):
        load_model(
            checkpoint, options.model_copy(update={"device_map": {**places, PARTS[5]: "disk"}}), torch.device("cpu")
        )


def test_one_process_a_spread_model():
    with pytest.raises(ValueError, match="2 processes were started"):
        choose_device(ModelOptions(device_map="auto"), world_size=2)
    assert choose_dtype(ModelOptions(), torch.device("cpu")) == "float32"


def test_a_device_map_decides_where_the_prompt_goes(tiny_checkpoint):
    model = Qwen2_5_VL_VReason(pretrained=str(tiny_checkpoint), device_map="cpu", journal="off")
    assert model.device == torch.device("cpu")
