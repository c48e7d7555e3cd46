"""Every wrong model argument is one line that names it and says what is allowed, and no model is loaded for it."""

import pytest

from lmms_eval_vreason import VReason
from lmms_eval_vreason.adapter import host as command_line
from lmms_eval_vreason.adapter import loading, model
from lmms_eval_vreason.adapter.options import argument_names, parse_options

WRONG = [
    ("polcy", "switch", "did you mean policy"),
    ("policy", "fastest", "switch, minimize, maximize, random, off"),
    ("learning_rate", -1, "[0, inf)"),
    ("update_every", 0, "[1, inf)"),
    ("update_every ", "2", "unknown model argument"),
    ("refresh", "perhaps", "neither on nor off"),
    ("ema_decay", 1.0, "[0, 1)"),
    ("objective", "entropy", "kl_p_u, kl_u_p"),
    ("optimizer", "lion", "adam, sgd"),
    ("steps_per_update", 0, "[1, inf)"),
    ("norm", "batch", "head, token, cache, none"),
    ("min_entropy", -0.1, "[0, inf)"),
    ("head_topk", -1, "[0, inf)"),
    ("prune_ratio", 1.0, "[0, 1)"),
    ("prune_score", "size", "value_norm, key_norm"),
    ("compile", "maybe", "auto, on, off"),
    ("seed", -1, "[0,"),
    ("dtype", "int8", "auto, bfloat16, float16, float32"),
    ("attn_implementation", "magic", "sdpa, eager"),
    ("positions", "vllm", "trained, transformers"),
    ("batch_size", 0, "at least 1, or auto"),
    ("max_batch_size", 0, "at least 1"),
    ("min_pixels", "small", "at least 784"),
    ("max_pixels", 100, "at least 784"),
    ("max_num_frames", 1, "at least 2"),
    ("fps", 0, "above 0"),
    ("read_ahead", -1, "at least 0"),
    ("thinking", "loud", "neither on nor off"),
    ("reasoning_prompt", "nowhere.txt", "no such file"),
    ("system_prompt", "nowhere.md", "no such file"),
    ("max_thinking_tokens", 0, "at least 1"),
    ("max_answer_tokens", 1.5, "at least 1"),
    ("return_thinking", "x", "neither on nor off"),
    ("resume", "x", "neither on nor off"),
    ("on_error", "ignore", "skip, raise"),
    ("max_error_rate", 1.5, "from 0 to 1"),
    ("shared_prefix", -1, "from 0 to 1000, auto or off"),
    ("shared_prefix", "always", "from 0 to 1000, auto or off"),
    ("learning_rate", "fast", "must be a number"),
    ("learning_rate", float("nan"), "[0, inf)"),
    ("update_every", 1.5, "must be a number"),
    ("oom", "retry", "error, lite"),
    ("batch_size", "many", "at least 1"),
    ("max_num_frames", "all", "at least 2"),
    ("fps", "film", "must be a number"),
    ("thinking", 2, "neither on nor off"),
    ("prune_ratio", -0.5, "[0, 1)"),
    ("delta", 1, "unknown model argument"),
]


@pytest.mark.parametrize(("name", "value", "words"), WRONG)
def test_a_wrong_value_is_one_line_that_names_it(name, value, words):
    with pytest.raises(ValueError, match=name.strip()) as caught:
        parse_options({name: value})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "value", "words"), WRONG)
def test_within_the_command_it_ends_the_process_before_anything_loads(name, value, words, monkeypatch):
    monkeypatch.setattr(command_line, "runs_as_command", lambda: True)
    for step in ("find_checkpoint", "load_model", "load_processor"):
        monkeypatch.setattr(loading, step, lambda *args, step=step: pytest.fail(f"{step} was reached"))
    with pytest.raises(SystemExit) as caught:
        model.Qwen2_5_VL_VReason(**{name: value})
    # A text as the code means: print it, exit with 1.
    assert str(caught.value.code).startswith("qwen2_5_vl_vreason: ")
    assert words in caught.value.code


@pytest.mark.parametrize("name", ["learning_rate", "update_every", "max_num_frames", "prune_ratio", "seed", "fps"])
@pytest.mark.parametrize("value", ["many", True, [1]])
def test_what_is_no_number_is_refused(name, value):
    with pytest.raises(ValueError, match=name):
        parse_options({name: value})


def test_values_that_exclude_each_other():
    with pytest.raises(ValueError, match="min_pixels=90000 is above max_pixels=80000"):
        parse_options({"min_pixels": 90000, "max_pixels": 80000})
    with pytest.raises(ValueError, match="device_map"):
        parse_options({"device": "cpu", "device_map": "auto"})
    with pytest.raises(ValueError, match="compile='on' does not go with device_map"):
        parse_options({"compile": "on", "device_map": "auto"})
    with pytest.raises(ValueError, match="keep_shift=False needs refresh=True"):
        parse_options({"preset": "strong", "refresh": "off"})


def test_arguments_win_over_the_preset():
    method = parse_options({"preset": "strong", "min_entropy": 0.2}).method
    assert method == VReason.preset("strong", min_entropy=0.2) != VReason.preset("strong")
    with pytest.raises(ValueError, match="preset='wild' is not one of gentle, default, strong"):
        parse_options({"preset": "wild"})


def test_text_as_the_command_line_hands_it_over():
    options = parse_options(
        {
            "pretrained": "folder",
            "learning_rate": "0.03",
            "update_every": 4,
            "refresh": "off",
            "keep_shift": "on",
            "thinking": False,
            "policy": "off",
            "compile": True,
            "fps": "2",
            "batch_size": "4",
            "max_batch_size": None,
        }
    )
    assert (options.method.learning_rate, options.method.update_every, options.method.refresh) == (0.03, 4, False)
    assert (options.method.policy, options.method.compile) == ("off", "on")
    assert (options.thinking.thinking, options.video.fps, options.model.batch_size) == (False, 2.0, 4)


def test_the_reasoning_prompt_may_be_a_file(tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text("Think in <think></think>, answer in <answer></answer>.\n")
    options = parse_options({"reasoning_prompt": str(file)})
    assert options.thinking.reasoning_prompt == "Think in <think></think>, answer in <answer></answer>."


def test_lmms_eval_names_no_argument_that_hijacks_its_output_folder():
    # evaluation_tracker renames the folder after any argument that ends so.
    assert not [name for name in argument_names() if name.endswith(("delta", "peft"))]
