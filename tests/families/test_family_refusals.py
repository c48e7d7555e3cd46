"""What cannot be steered is refused with its reason, where it can be before anything is computed."""

import pytest
import torch
from random_families import TINY, family_batch, family_prompt, random_family
from random_model import batch, prompt, random_model
from tiny_families import internvl, text

from lmms_eval_vreason import VReason
from lmms_eval_vreason.engines.hf.prefix import prefill
from lmms_eval_vreason.families.family import family_of

TOKENS = {"max_new_tokens": 3, "eos_token_id": None}


def tiny(family, **text_config):
    """A model of ``family`` in which the text config has further settings."""
    config = TINY[family].config(2)
    config["text_config"] = {**config["text_config"], **text_config}
    return TINY[family].of(config, "sdpa").eval()


def asked(family):
    return family_batch(family, [family_prompt(family, seed=1)])


SLIDING = ["full_attention", "sliding_attention"]
MLA = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
LAYERS = {
    "sliding below the tail": ("gemma4", {"layer_types": SLIDING[::-1]}, None),
    "sliding": ("exaone4_5", {"layer_types": SLIDING}, "needs full attention; this model's has sliding_attention"),
    "linear": (
        "qwen3_5",
        {"layer_types": ["full_attention", "linear_attention"]},
        "needs full attention; this model's has linear_attention",
    ),
    "sliding, unnamed": (
        "llava_next_video",
        text("mistral", 2, sliding_window=16),
        "needs full attention; this model's has DynamicSlidingWindowLayer",
    ),
    "convolution": (
        "internvl",
        text("lfm2", 2, layer_types=["full_attention", "conv"]),
        "needs full attention; this model's has conv",
    ),
    "shared keys and values": (
        "gemma4",
        {"layer_types": ["full_attention", "full_attention"], "num_kv_shared_layers": 1},
        "last layers share the keys and values of an earlier one",
    ),
    "latents": (
        "llava_onevision",
        text("deepseek_v3", 2, **MLA, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1)
        | {"first_k_dense_replace": 2, "num_key_value_heads": 6},
        "caches latents",
    ),
    "several operations after the head": (
        "llava_onevision",
        {"logits_scaling": 2.0, "final_logit_softcapping": 5.0},
        "one operation after the head is known",
    ),
}


@pytest.mark.parametrize(("family", "settings", "reason"), LAYERS.values(), ids=LAYERS)
def test_layers_and_heads(family, settings, reason):
    model = tiny(family, **settings)
    if reason is None:
        assert family_of(model).model_type == family
        return
    with pytest.raises(TypeError, match=f"cannot steer this {model.config.model_type} model: .*{reason}"):
        VReason().generate(model, **asked(family), **TOKENS)


def test_a_head_that_is_split_between_devices():
    model = random_family("qwen3_vl")
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight[:48])
    with pytest.raises(TypeError, match="head has 48 rows for a vocabulary of 96"):
        family_of(model)


@pytest.mark.parametrize("family", ["internvl", "smolvlm", "glm4v"])
def test_videos_and_images_under_one_placeholder(family):
    """Without token types nothing tells them apart; an image's tokens are not steered."""
    model, inputs = random_family(family), asked(family)
    types = inputs.pop("mm_token_type_ids")
    with pytest.raises(ValueError, match=f"in {family} prompts images and videos share a placeholder: pass mm_token"):
        VReason().generate(model, **inputs, positions="transformers", position_ids=positions(inputs), **TOKENS)
    half = torch.where(types.cumsum(1) > types.sum() // 2, types, types.clamp(max=1))
    family_mask = family_of(model).video_mask(model, inputs["input_ids"], half)
    assert 0 < int(family_mask.sum()) < int((types == 2).sum())
    words = {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    assert VReason().generate(model, **words, **TOKENS).traces[0].note == "the prompt has no video tokens"


def positions(inputs):
    """So that a family whose positions need token types gets as far as the mask."""
    return torch.arange(inputs["input_ids"].shape[1]).expand(4, 1, -1) if "video_grid_thw" in inputs else None


def test_a_model_that_counts_columns():
    """EXAONE-4.5 with full attention in all layers could drop tokens; its positions could not."""
    model = tiny("exaone4_5", layer_types=["full_attention", "full_attention"])
    reason = "moves tokens in the cache, whose columns a exaone4_5 model counts"
    with pytest.raises(TypeError, match=f"Lite .prune_ratio=0.5. {reason}"):
        VReason(prune_ratio=0.5).generate(model, **asked("exaone4_5"), **TOKENS)
    with pytest.raises(TypeError, match=f"a shared prefix {reason}"):
        prefill(model, asked("exaone4_5"))


def test_attention_with_sinks():
    """InternVL3.5 over GPT-OSS: its attention has more than p V, which the engine sees at the first update."""
    more = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 16}
    config = internvl(2, "gpt_oss", **more, layer_types=SLIDING[::-1])
    model = TINY["internvl"].of(config, "eager").eval()
    with pytest.raises(TypeError, match="cannot steer attention with s_aux"):
        VReason(min_entropy=0).generate(model, **asked("internvl"), **TOKENS)


def test_families_that_are_not_in_the_table():
    model = random_model()
    for name in ("qwen3_omni_moe", "mllama", "deepseek_vl"):
        model.config.model_type = name
        with pytest.raises(TypeError, match=rf"V-Reason steers exaone4_5, .*qwen3_vl_moe.*, not .*\({name}\)"):
            VReason().generate(model, **batch([prompt()]), **TOKENS)
