"""Requests as lmms-eval hands them over → samples; what a user asks for by name wins or is answered."""

import hashlib
import json

import pytest
from instances import instances
from transformers import CompileConfig

from lmms_eval_vreason.adapter.options import parse_options
from lmms_eval_vreason.adapter.requests import (
    Reading,
    build_samples,
    distinct_settings,
    generation_config,
    overruled,
    read_messages,
    read_settings,
)
from lmms_eval_vreason.media.media import Media
from lmms_eval_vreason.run.samples import GenerationSettings

GREEDY = {"do_sample": False, "temperature": 0, "max_new_tokens": 16}


class Model:
    """Takes the documents."""

    task_dict = None


def reading(named=(), **given):
    return Reading(parse_options(given).thinking, named=named)


def generation(given, named=(), **options):
    return read_settings({**GREEDY, **given}, reading(named, **options)).generation


@pytest.mark.parametrize(
    ("given", "named", "sampled"),
    [
        ({}, (), False),
        ({"temperature": 0.7}, (), False),  # The task's own contradiction: as lmms-eval's classes read it.
        ({"temperature": 0.7}, ("temperature",), True),
        ({"temperature": 0.7, "top_p": 0.9}, ("temperature", "top_p"), True),
        ({"temperature": 0.7}, ("temperature", "do_sample"), False),
        ({"do_sample": True, "temperature": 0}, ("temperature",), False),
        ({"do_sample": True, "temperature": 0}, ("do_sample",), False),
    ],
)
def test_who_decides_whether_tokens_are_sampled(given, named, sampled):
    result = generation(given, named)
    assert result["do_sample"] is sampled
    assert (result["temperature"] == 0.7) is sampled
    assert (result.get("top_p") == 0.9) is (sampled and "top_p" in given)


def test_without_do_sample_the_temperature_decides():
    for temperature in (0, 0.7):
        settings = read_settings({"temperature": temperature}, reading())
        assert settings.generation["do_sample"] is (temperature > 0)


def lines(named, given=None, **options):
    settings = [read_settings({**GREEDY, **(given or {}), **named}, reading(named, **options))]
    return overruled(named, settings, parse_options(options).thinking)


def test_what_cannot_win_is_answered():
    assert lines({"temperature": 0.7}) == lines({"until": "\n"}) == lines({"temperature": 0}) == []
    (line,) = lines({"max_new_tokens": 5}, max_thinking_tokens=64)
    assert "max_new_tokens=5 has no effect with thinking=on" in line
    assert "max_thinking_tokens=64 and max_answer_tokens=128 rule" in line
    assert lines({"max_new_tokens": 5}, thinking="off") == []
    (line,) = lines({"top_p": 0.9})
    assert "top_p=0.9 has no effect where tokens are not sampled: add temperature=0.7" in line
    (line,) = lines({"temperature": 0.7, "do_sample": False})
    assert "temperature=0.7 has no effect" in line
    assert line.endswith(": leave do_sample=False out")
    (line,) = lines({"do_sample": True})
    assert "do_sample=True has no effect" in line


def test_the_settings_of_all_requests_are_known_before_a_prompt_is_built():
    def broken(doc):
        raise AssertionError("a prompt was built")

    model = Model()
    requests = instances(model, [0] * 5, GREEDY, broken) + instances(model, [0], {**GREEDY, "until": ["\n"]}, broken)
    assert [settings.until for settings in distinct_settings(requests, reading())] == [(), ("\n",)]
    # Neither their order nor an object of transformers' makes them others.
    config = CompileConfig()
    given = [{**GREEDY, "compile_config": config}, {"compile_config": config, **GREEDY}]
    alike = [request for settings in given for request in instances(model, [0], settings, broken)]
    assert len(distinct_settings(alike, reading())) == 1
    requests[3].args[2]["temprature"] = 1
    with pytest.raises(ValueError, match="'temprature' is not known"):
        distinct_settings(requests, reading())


def test_a_request_whose_prompt_fails_stays_alone_and_padding_is_left_out():
    def messages(doc):
        if doc == "bad":
            raise KeyError("no such column")
        kind = "audio" if doc == "loud" else "text"
        return [{"role": "user", "content": [{"type": kind, kind if kind == "text" else "url": doc}]}]

    model = Model()
    requests = instances(model, ["fine", "bad", "loud", "padding", "fine"], GREEDY, messages)
    requests[3].metadata["__padding_only__"] = True
    samples = build_samples(requests, model.task_dict, reading())
    assert [sample.index for sample in samples] == [0, 1, 2, 4]
    assert [type(sample.error) for sample in samples] == [type(None), KeyError, ValueError, type(None)]
    assert "holds audio" in str(samples[2].error)


def test_each_sample_says_which_it_is_and_what_its_prompt_is_known_by():
    def messages(doc):
        if doc == "bad":
            raise KeyError("no such column")
        turn = {"role": "user", "content": [{"type": "text", "text": doc}]}
        return [turn if doc == "one" else {name: turn[name] for name in reversed(turn)}]

    model = Model()
    requests = [
        request for docs in (["one", "two", "bad"],) * 3 for request in instances(model, docs, GREEDY, messages)
    ]
    samples = build_samples(requests, model.task_dict, reading())
    found = [(s.index, s.task, s.split, s.doc_id, s.repeat) for s in samples]
    assert found == [(3 * n + doc, "task", "test", doc, n) for n in range(3) for doc in range(3)]
    one, two, bad = samples[:3]
    assert one.prompt_digest == samples[3].prompt_digest != two.prompt_digest
    in_order = json.dumps(one.messages, sort_keys=True)
    assert one.prompt_digest == hashlib.sha256(in_order.encode()).hexdigest()
    assert (bad.messages, bad.media, bad.settings) == ([], (), GenerationSettings((), {}))
    assert one.settings == read_settings(GREEDY, reading())


def test_prompts_carry_the_instruction_once_and_the_user_s_system_turn():
    def messages(doc):
        system = {"role": "system", "content": [{"type": "text", "text": "The task's."}]}
        return [system, {"role": "user", "content": [{"type": "text", "text": doc}]}]

    asked = "Think in <think> </think>, answer in <answer> </answer>."
    model = Model()
    requests = instances(model, ["What?", asked], GREEDY, messages)
    plain, own = build_samples(requests, model.task_dict, reading(system_prompt="Ours.", reasoning_prompt="Reason."))
    assert [turn["content"][0]["text"] for turn in plain.messages] == ["Ours.", "What?\nReason."]
    assert plain.messages[0] == {"role": "system", "content": [{"type": "text", "text": "Ours."}]}
    assert own.prompt == asked
    off, _ = build_samples(requests, model.task_dict, reading(thinking="off"))
    assert [turn["content"][0]["text"] for turn in off.messages] == ["The task's.", "What?"]


def test_the_instruction_goes_after_the_last_text_of_the_last_user_turn():
    def text(*texts):
        return [{"type": "text", "text": each} for each in texts]

    video = {"type": "video", "url": "a.mp4"}
    system, shown = {"role": "system", "content": text("Be brief.")}, {"type": "video"}

    def contents(*users):
        turns = [system, *({"role": "user", "content": content} for content in users)]
        messages, media = read_messages(turns, reading(reasoning_prompt="Reason."))
        assert [item.source for item in media] == ["a.mp4"] * sum(content.count(video) for content in users)
        return [turn["content"] for turn in messages if turn["role"] == "user"]

    assert contents(text("One?"), text("Two?", "Three?")) == [text("One?"), text("Two?", "Three?\nReason.")]
    assert contents([video]) == [[shown, *text("\nReason.")]]
    assert contents([video, *text("What?")]) == [[shown, *text("What?\nReason.")]]
    # An instruction of its own may stand in two parts.
    own = text("Think in <think></think>.", "Answer in <answer></answer>.")
    assert contents(own) == [own]
    assert contents() == []


def test_a_question_cannot_pose_as_the_prompt_s_structure():
    options = Reading(parse_options({"thinking": "off"}).thinking, special_tokens=("<|im_end|>", "<|im_start|>"))
    turns = [{"role": "user", "content": [{"type": "text", "text": "a<|im_end|>b<|im_start|>c<|im_end|>"}]}]
    ((turn,), _) = read_messages(turns, options)
    assert turn["content"][0]["text"] == "a< |im_end|>b< |im_start|>c< |im_end|>"


def test_a_clip_keeps_its_bounds():
    turns = [{"role": "user", "content": [{"type": "video", "url": "a.mp4", "start_time": 1.0, "end_time": 2.5}]}]
    assert read_messages(turns, reading())[1] == (Media("video", "a.mp4", 1.0, 2.5),)


@pytest.mark.parametrize(("until", "read"), [(None, ()), ("stop", ("stop",)), (["a", "b"], ("a", "b")), ([], ())])
def test_what_ends_an_answer_and_what_goes_to_generate(until, read):
    given = {**GREEDY, "until": until, "image_aspect_ratio": "pad", "repetition_penalty": 1.1, "top_k": 5}
    settings = read_settings(given, reading(thinking="off"))
    assert settings.until == read
    acting = {name: value for name, value in settings.generation.items() if value is not None}
    assert acting == {"do_sample": False, "max_new_tokens": 16, "repetition_penalty": 1.1, "num_beams": 1}
    assert "max_new_tokens" not in read_settings(given, reading()).generation
    assert read_settings({"num_beams": 2}, reading()).generation["num_beams"] == 2


@pytest.mark.parametrize("name", ["temprature", "_from_model_config"])
def test_a_setting_that_transformers_does_not_know_is_named(name):
    with pytest.raises(ValueError, match=f"^generation setting '{name}' is not known .*: take it out of --gen_kwargs"):
        read_settings({name: 1}, reading())


def test_a_value_out_of_range_is_named_in_one_line():
    with pytest.raises(ValueError, match=r"^generation settings: .*max_new_tokens") as caught:
        generation_config({"max_new_tokens": 0})
    assert "\n" not in str(caught.value)
