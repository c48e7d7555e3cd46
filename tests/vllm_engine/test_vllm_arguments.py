"""What goes into ``LLM``, and what is refused in one line before a weight loads."""

import logging

import pytest

from lmms_eval_vreason import VReason
from lmms_eval_vreason.engines.vllm import arguments, engine_args
from lmms_eval_vreason.shapes import checkpoint_dir

REFUSED = {
    "kv_cache_dtype": "fp8",
    "speculative_config": {"method": "ngram", "num_speculative_tokens": 2},
    "quantization": "awq",
    "enable_lora": True,
    "pipeline_parallel_size": 2,
    "tensor_parallel_size": 2,
    "async_scheduling": True,
    "video_pruning_rate": 0.5,
    "worker_cls": "somebody.Else",
}


def made(method=None, **given):
    return engine_args(method or VReason(), model=str(checkpoint_dir()), **given)


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_with_the_method_is_refused_in_one_line(name):
    with pytest.raises(ValueError, match=f"^{name}=.* does not go with V-Reason: ") as error:
        made(**{name: REFUSED[name]})
    assert "\n" not in str(error.value)


def test_shared_pages_are_refused_where_they_are_written():
    kept = VReason(keep_shift=True)
    assert made(kept)["enable_prefix_caching"] is False
    assert made()["enable_prefix_caching"] is True
    with pytest.raises(ValueError, match="keep_shift=on"):
        made(kept, enable_prefix_caching=True)


@pytest.mark.parametrize(("changes", "message"), [({"prune_ratio": 0.5}, "Lite"), ({"compile": "on"}, "enforce_eager")])
def test_hyperparameters_of_the_other_engine_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        made(VReason(**changes))


def test_a_checkpoint_of_another_family_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llava_onevision"}', encoding="utf-8")
    with pytest.raises(ValueError, match="steers qwen2_5_vl, qwen3_vl in vLLM, not llava_onevision"):
        engine_args(VReason(), model=str(tmp_path))


def test_arguments_of_vllm_pass_through():
    given = made(hf_overrides={"rope_theta": 1.0}, additional_config={"mine": 1}, max_num_seqs=7, enforce_eager=False)
    assert given["hf_overrides"] == {"rope_theta": 1.0, "architectures": ["Qwen2_5_VLVReason"]}
    assert given["additional_config"]["mine"] == 1
    assert VReason(**given["additional_config"]["vreason"]) == VReason()
    assert given["max_num_seqs"] == 7
    assert given["enforce_eager"] is False


def test_an_unknown_release_is_warned_of(monkeypatch, caplog):
    monkeypatch.setattr(arguments, "installed_version", lambda: "9.9.9")
    with caplog.at_level(logging.WARNING):
        made()
    assert "not on 9.9.9" in caplog.text
