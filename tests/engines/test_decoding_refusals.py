"""What the method cannot run on is refused by name, with the mend, and before anything is generated."""

import pytest
import torch
from random_model import batch, prompt, random_model
from transformers import (
    DynamicCache,
    GenerationConfig,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)
from transformers.cache_utils import DynamicSlidingWindowLayer

from lmms_eval_vreason import VReason
from lmms_eval_vreason.engines.hf.support import check_cache
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
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": 96,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
        },
        vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2},
    )
    refused(Qwen2VLForConditionalGeneration(config), "not Qwen2VLForConditionalGeneration", error=TypeError)


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
        check_cache(cache)
    with pytest.raises(ValueError, match="use_cache=True"):
        check_cache(None)


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
