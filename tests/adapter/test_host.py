"""What lmms-eval's command line says, beside what lmms-eval passes on."""

import sys

import pytest

from lmms_eval_vreason.adapter import host, model


@pytest.fixture
def command(monkeypatch):
    """Makes this process lmms-eval's command, with the given words."""

    def set_words(*words):
        monkeypatch.setattr(host, "runs_as_command", lambda: True)
        monkeypatch.setattr(sys, "argv", ["lmms_eval", *words])

    return set_words


def test_flags_in_both_spellings(command):
    command("--output_path", "out", "--gen_kwargs=temperature=0.7,until=x", "--use_cache", "folder")
    assert str(host.output_folder()) == "out"
    assert host.named_generation_settings() == {"temperature": 0.7, "until": "x"}
    assert host.flag("--use_cache") == "folder"
    command("--tasks", "--output_path")
    assert host.output_folder() is None
    assert host.named_generation_settings() == {}
    assert host.flag("--use_cache") is None


def test_in_another_program_the_command_line_means_nothing(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--output_path", "out", "--gen_kwargs", "temperature=1"])
    assert host.output_folder() is None
    assert host.named_generation_settings() == {}


def test_model_args_win_over_the_flags_that_lmms_eval_passes_on(command):
    command("--model_args", "batch_size=4")
    flags = {"batch_size": 1, "max_batch_size": None, "device": None}
    assert host.model_arguments("batch_size=4,policy=off", flags) == {"batch_size": 4, "policy": "off"}
    assert host.model_arguments("", flags) == {"batch_size": 1}
    command("-b", "auto")
    assert host.model_arguments("", {"batch_size": "auto"}) == {"batch_size": "auto"}


def test_the_class_takes_arguments_as_the_command_gives_them(command, monkeypatch):
    seen = {}
    monkeypatch.setattr(model.Qwen2_5_VL_VReason, "__init__", lambda self, **given: seen.update(given))
    command()
    model.Qwen2_5_VL_VReason.create_from_arg_string("batch_size=4,device=cpu", {"batch_size": 1, "device": "cpu"})
    assert seen == {"batch_size": 4, "device": "cpu"}
    with pytest.raises(SystemExit, match="write name=value"):
        model.Qwen2_5_VL_VReason.create_from_arg_string("policy")
