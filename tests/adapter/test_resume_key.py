"""The resume key: what changes an answer changes it, and nothing else does. Each option is decided on here by name."""

import copy
import json
import os
import shutil
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from PIL import Image

from lmms_eval_vreason.adapter.loading import choose_dtype, find_checkpoint
from lmms_eval_vreason.adapter.model import run_identity
from lmms_eval_vreason.adapter.options import argument_names, parse_options, with_video_defaults
from lmms_eval_vreason.adapter.requests import Reading, build_samples, read_settings
from lmms_eval_vreason.journal.files import digest
from lmms_eval_vreason.media.media import Media
from lmms_eval_vreason.method.config import VReason
from lmms_eval_vreason.run.records import sample_key, who
from lmms_eval_vreason.run.samples import GenerationSettings, Sample

# Option → (another value than the default, whether it changes the key). An option that is missing here fails the test.
DECISIONS = {
    # The checkpoint's identity and the dtype in force stand for these: see the tests below.
    "pretrained": (None, True),
    "revision": (None, True),
    "dtype": ("bfloat16", True),
    "attn_implementation": ("eager", True),
    "positions": ("transformers", True),
    # Where and how many at a time: answers are the same.
    "device": ("cpu", False),
    "device_map": ("auto", False),
    "batch_size": (4, False),
    "max_batch_size": (8, False),
    "compile": ("off", False),
    "read_ahead": (0, False),
    "shared_prefix": ("off", False),
    # What is shown.
    "max_num_frames": (16, True),
    "fps": (1, True),
    "min_pixels": (784, True),
    "max_pixels": (401408, True),
    # What is asked, and how long the answer may be.
    "thinking": ("off", True),
    "reasoning_prompt": ("Think in <think></think>, then answer in <answer></answer>.", True),
    "system_prompt": ("Be brief.", True),
    "enable_thinking": ("off", True),
    "task_prompt": ("qwen3_vl", False),  # What it changes is in the prompt.
    "max_thinking_tokens": (64, True),
    "max_answer_tokens": (16, True),
    # What happens to an answer afterwards, or where there is none.
    "return_thinking": ("off", False),
    "journal": ("off", False),
    "resume": ("off", False),
    "on_error": ("raise", False),
    "max_error_rate": (0.5, False),
    "oom": ("lite", False),
    # The method.
    "preset": ("strong", True),
    "policy": ("minimize", True),
    "learning_rate": (0.02, True),
    "update_every": (4, True),
    "keep_shift": ("on", True),
    "refresh": ("off", True),
    "beta1": (0.5, True),
    "beta2": (0.9, True),
    "ema_decay": (0.98, True),
    "ema_correction": ("on", True),
    "objective": ("kl_u_p", True),
    "optimizer": ("sgd", True),
    "steps_per_update": (2, True),
    "norm": ("token", True),
    "min_entropy": (0.01, True),
    "head_topk": (64, True),
    "head_tail": (0.1, True),
    "prune_ratio": (0.5, True),
    "prune_score": ("key_norm", True),
    "seed": (1, True),
}
TASK = {"max_new_tokens": 16, "temperature": 0, "do_sample": False, "until": ["\n\n"]}


class Request:
    """What of lmms-eval's Instance is read."""

    metadata = None

    def __init__(self, settings, doc_id=0, task="task"):
        self.args = ("", messages, copy.deepcopy(settings), doc_id, task, "test")


def messages(doc):
    return [
        {"role": "user", "content": [{"type": "video", "url": doc["video"]}, {"type": "text", "text": doc["text"]}]}
    ]


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"a video")
    return path


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")


@pytest.fixture
def key(video, checkpoint):
    """The key of the only sample of a run with the given arguments."""

    def built(settings=TASK, named=(), text="What moves?", source=None, task="task", **given):
        options = parse_options({"pretrained": str(checkpoint), **given})
        found = find_checkpoint(options.model)
        options = with_video_defaults(options, found.video)
        identity = run_identity(options, found, choose_dtype(options.model, torch.device("cpu")))
        doc = {"video": source or str(video), "text": text}
        reading = Reading(options.thinking, named=named)
        (sample,) = build_samples([Request(settings, task=task)], {task: {"test": [doc]}}, reading)
        return sample_key(sample, digest(identity))

    return built


def test_every_option_is_decided_on():
    assert set(DECISIONS) == set(argument_names())
    changing = {name for name, (_, changes) in DECISIONS.items() if changes}
    assert {f.name for f in fields(VReason)} - changing == {"compile"}


@pytest.mark.parametrize(("name", "value", "changes"), [(n, v, c) for n, (v, c) in DECISIONS.items() if v is not None])
def test_an_option_changes_the_key_if_it_changes_an_answer(key, name, value, changes):
    # Without the refresh ΔV has to stay.
    others = {"keep_shift": "on"} if name == "refresh" else {}
    assert (key(**others, **{name: value}) != key(**others)) is changes


def test_budgets_and_the_instruction_count_only_while_the_model_thinks(key):
    off = {"thinking": "off"}
    for name in ("max_thinking_tokens", "max_answer_tokens", "reasoning_prompt"):
        assert key(**off, **{name: DECISIONS[name][0]}) == key(**off)
    own = "Think in <think></think>, answer in <answer></answer>."
    assert key(text=own, reasoning_prompt=own) == key(text=own)


def test_each_file_that_an_answer_depends_on_identifies_the_checkpoint(key, checkpoint):
    last = key()
    names = sorted(path.name for path in checkpoint.iterdir())
    assert {"model.safetensors", "config.json", "generation_config.json", "chat_template.jinja"} <= set(names)
    for number, name in enumerate(names, start=1):
        os.utime(checkpoint / name, ns=(0, number))
        assert key() != last, name
        last = key()
    (checkpoint / "README.md").write_text("words")
    assert key() == last


def test_a_checkpoint_of_the_hub_is_known_by_its_commit(tiny_checkpoint, monkeypatch):
    from transformers import AutoConfig

    from lmms_eval_vreason.adapter import loading

    config = AutoConfig.from_pretrained(tiny_checkpoint)
    monkeypatch.setattr(loading.AutoConfig, "from_pretrained", lambda *args, **kwargs: config)
    monkeypatch.setattr(loading, "video_defaults", lambda *args: {})

    def identity(commit, **given):
        config._commit_hash = commit
        return find_checkpoint(parse_options({"pretrained": "some/model", **given}).model).identity

    assert identity("aaa") != identity("bbb")
    assert identity("aaa") == identity("aaa", revision="main")
    assert identity(None) != identity(None, revision="v2")


def test_the_dtype_in_force_counts_and_not_its_name(key):
    # On a CPU `auto` is float32.
    assert key(dtype="float32") == key()
    assert len({key(dtype=dtype) for dtype in ("float32", "bfloat16", "float16")}) == 3


def test_transformers_positions_are_those_of_its_version(key, monkeypatch):
    before, trained = key(positions="transformers"), key()
    monkeypatch.setattr("lmms_eval_vreason.adapter.model.version", lambda name: "9.9")
    assert key(positions="transformers") != before
    assert key() == trained


def test_the_checkpoint_s_own_frames_count_as_given(key, checkpoint):
    given, plain = key(fps=3), key()
    (checkpoint / "vreason.json").write_text(json.dumps({"video": {"fps": 3}}))
    assert key() == given == key(fps=3)
    assert key(fps="none") == plain


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({"temperature": 0.7, "do_sample": True}, True),
        ({"until": ["\n"]}, True),
        ({"until": []}, True),
        ({"repetition_penalty": 1.2}, True),
        # Nothing is sampled, so it does nothing.
        ({"temperature": 0.7}, False),
        ({"top_p": 0.5}, False),
        ({"image_aspect_ratio": "pad"}, False),
        # The budgets rule while the model thinks.
        ({"max_new_tokens": 32}, False),
    ],
)
def test_generation_settings_of_the_task(key, settings, changes):
    assert (key(settings={**TASK, **settings}) != key()) is changes


def test_the_task_s_length_counts_without_thinking(key):
    longer = {**TASK, "max_new_tokens": 32}
    assert key(settings=longer, thinking="off") != key(thinking="off")


def test_a_temperature_given_by_name_counts(key):
    warm = {**TASK, "temperature": 0.7}
    assert key(settings=warm, named=("temperature",)) != key()
    assert key(settings={**warm, "top_p": 0.5}, named=("temperature",)) != key(settings=warm, named=("temperature",))


def test_who_a_sample_is_and_what_it_shows(key, video, tmp_path):
    first = key()
    assert key(text="What stays?") != first
    assert key(task="other") != first
    assert key() == first
    os.utime(video, ns=(0, 1))
    changed = key()
    assert changed != first
    video.write_bytes(b"another video")
    os.utime(video, ns=(0, 1))
    assert key() != changed
    light, dark = (Image.fromarray(np.full((28, 28, 3), value, np.uint8)) for value in (200, 10))
    assert key(source=[light, light]) == key(source=[light.copy(), light.copy()]) != key(source=[light, dark])


def test_each_part_of_a_clip_and_each_repeat_has_its_own_key(video):
    reading = Reading(parse_options({}).thinking)
    first, again = build_samples([Request(TASK)] * 2, {"task": {"test": [{"video": str(video), "text": "?"}]}}, reading)
    assert (first.repeat, again.repeat) == (0, 1)
    clips = [
        replace(first, media=(replace(first.media[0], start=a, end=b),))
        for a, b in ((0.0, 1.0), (1.0, 2.0), (0.0, 2.0))
    ]
    assert len({sample_key(sample, "") for sample in (first, again, *clips)}) == 5


class Frames:
    """Media of a task's own kind, known by what it says of itself."""

    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return f"Frames({self.name})"


def test_each_part_of_a_sample_counts_and_its_place_among_the_requests_does_not(video):
    settings = GenerationSettings(("\n",), {"do_sample": False})
    one = Sample(0, "task", "test", 1, 0, [], (Media("video", str(video)),), settings, "digest")
    media = [
        (),
        one.media * 2,
        (Media("image", str(video)),),
        *((Media("video", Frames(name)),) for name in "ab"),
        (Media("video", [Frames("a"), Frames("b")]),),
        *((Media("video", Image.new("RGB", size)),) for size in ((28, 56), (56, 28))),
        *((Media("video", Image.new(mode, (28, 56))),) for mode in "LP"),
        (Media("video", Image.new("RGB", (28, 56), "white")),),
        (Media("video", np.zeros(4, np.uint8)),),
        (Media("video", np.zeros((2, 2), np.uint8)),),
        (Media("video", np.ones(4, np.uint8)),),
    ]
    others = [
        replace(one, task="b"),
        replace(one, split="b"),
        replace(one, doc_id=2),
        replace(one, repeat=1),
        replace(one, prompt_digest="b"),
        replace(one, settings=replace(settings, until=())),
        replace(one, settings=replace(settings, generation={"do_sample": True})),
        *(replace(one, media=other) for other in media),
    ]
    keys = [sample_key(one, ""), sample_key(one, "other settings"), *(sample_key(other, "") for other in others)]
    assert len(set(keys)) == len(keys)
    assert sample_key(replace(one, index=7, messages=[{"role": "user", "content": []}]), "") == keys[0]
    shown = Image.new("RGB", (28, 56), "red")
    copies = [replace(one, media=(Media("video", [shown.copy(), shown.copy()]),)) for _ in range(2)]
    assert sample_key(copies[0], "") == sample_key(copies[1], "")
    assert who(one) == {"task": "task", "split": "test", "doc_id": 1, "repeat": 0}


def test_settings_that_act_alike_are_alike():
    reading = Reading(parse_options({}).thinking)
    assert read_settings({}, reading) == read_settings(TASK | {"until": None, "top_k": 3}, reading)
