"""What the method cannot run on is refused by name, with the mend, and before anything is generated."""

import pytest
import torch
from random_model import batch, prompt, random_model
from transformers import (
    DynamicCache,
    GenerationConfig,
)
from transformers.cache_utils import DynamicSlidingWindowLayer

from lmms_eval_vreason import VReason
from lmms_eval_vreason.engines.hf import seam
from lmms_eval_vreason.engines.hf.cache import check_cache
from lmms_eval_vreason.engines.hf.upstream import CACHE

INPUTS = batch([prompt(seed=1)])


@pytest.fixture(scope="module")
def model():
    return random_model()


def refused(model, match, error=ValueError, **settings):
    with pytest.raises(error, match=match):
        VReason().generate(model, **{**INPUTS, "max_new_tokens": 4, **settings})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_beams", 4),
        ("num_return_sequences", 2),
        ("use_cache", False),
        ("return_dict_in_generate", True),
        ("prompt_lookup_num_tokens", 3),
        ("penalty_alpha", 0.6),
        ("cache_implementation", "offloaded"),
        ("cache_implementation", "quantized"),
        ("cache_implementation", "sliding_window"),
        ("cache_implementation", "offloaded_static"),
    ],
)
@pytest.mark.parametrize("through_config", [False, True])
def test_settings_of_generate(model, name, value, through_config):
    if through_config:
        config = GenerationConfig(max_new_tokens=4)
        setattr(config, name, value)
        settings = {"generation_config": config, "max_new_tokens": None}
    else:
        settings = {name: value}
    refused(model, f"{name}={value!r} does not go with V-Reason: set it to", **settings)


@pytest.mark.parametrize("name", ["num_beams", "cache_implementation"])
def test_settings_of_the_checkpoint(name):
    model = random_model()
    setattr(model.generation_config, name, {"num_beams": 2, "cache_implementation": "quantized"}[name])
    refused(model, f"{name}=.* does not go with V-Reason")


@pytest.mark.parametrize("name", ["assistant_model", "inputs_embeds", "custom_generate"])
def test_arguments_of_generate(model, name):
    refused(model, f"{name} does not go with V-Reason: leave it out", **{name: model})


def test_inference_mode(model):
    with torch.inference_mode():
        refused(model, "inference_mode")


def test_another_model_class():
    model = random_model()
    model.config.model_type = "llama"
    refused(model, r"steers .*qwen2_5_vl, qwen2_vl.* models, not Qwen2_5_VL.* \(llama\)", error=TypeError)


def test_heads_that_are_not_plain():
    model = random_model()
    model.lm_head = torch.nn.Sequential(model.lm_head)
    refused(model, "needs a plain linear head; this model's is a Sequential", error=TypeError)


@pytest.mark.parametrize("name", ["softcap", "s_aux", "position_bias"])
def test_attention_that_is_more_than_p_times_v(name):
    model = random_model(attention="eager")
    attention = model.model.language_model.layers[-1].self_attn
    attention.register_forward_pre_hook(lambda module, args, kwargs: (args, {**kwargs, name: 1.0}), with_kwargs=True)
    with pytest.raises(TypeError, match=f"cannot steer attention with {name}"):
        VReason().generate(model, **INPUTS, max_new_tokens=4)


@pytest.mark.parametrize("what", ["attention's output", "logits"])
def test_a_tail_that_is_not_the_models_own_is_found_at_the_first_update(monkeypatch, what):
    """Something between the cache and the logits that the engine does not know of."""
    model = random_model()
    if what == "logits":
        model.model.language_model.register_forward_hook(
            lambda module, args, output: setattr(output, "last_hidden_state", output.last_hidden_state * 1.01)
        )
    else:
        own = seam.own_attention

        def scaled(attention):
            function = own(attention)

            def attend(*args, **kwargs):
                output, weights = function(*args, **kwargs)
                return output * 1.01, weights

            return attend

        monkeypatch.setattr(seam, "own_attention", scaled)
    with pytest.raises(RuntimeError, match=f"cannot steer this qwen2_5_vl model.* its {what} differ by [0-9.e-]+ from"):
        VReason().generate(model, **INPUTS, max_new_tokens=4)
    result = VReason(policy="off").generate(model, **INPUTS, max_new_tokens=4)
    assert result.traces[0].note == "the policy is off"


def test_sliding_layers_of_a_model():
    model = random_model()
    model.config.text_config.layer_types = ["full_attention", "full_attention", "sliding_attention"]
    refused(model, "sliding_attention", error=TypeError)


def test_caches_that_are_handed_over(model):
    sliding = DynamicCache()
    sliding.layers = [DynamicSlidingWindowLayer(sliding_window=64) for _ in range(3)]
    sliding.layer_class_to_replicate = None
    refused(model, "cache layer of type DynamicSlidingWindowLayer", **{CACHE: sliding})


def test_offloaded_and_missing_caches():
    cache = DynamicCache()
    cache.offloading = True
    with pytest.raises(ValueError, match="offloaded cache"):
        check_cache(cache, pruned=False)
    with pytest.raises(ValueError, match="use_cache=True"):
        check_cache(None, pruned=False)


def test_stop_strings_without_a_tokenizer(model):
    refused(model, "stop_strings need the tokenizer", stop_strings=["."])


def test_plain_values_are_let_through(model):
    result = VReason().generate(
        model,
        **INPUTS,
        max_new_tokens=2,
        num_beams=1,
        use_cache=True,
        return_dict_in_generate=False,
        cache_implementation="dynamic",
    )
    assert result.sequences.shape[1] == INPUTS["input_ids"].shape[1] + 2
