"""lmms-eval's requests → samples: the prompt with its media, and the generation settings."""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.protocol import ChatMessages
from transformers import GenerationConfig

from lmms_eval_vreason.media.media import Media
from lmms_eval_vreason.prompts.instruction import add_reasoning_prompt
from lmms_eval_vreason.prompts.options import ThinkingOptions
from lmms_eval_vreason.run.samples import GenerationSettings, Sample

# What some stock tasks carry for other models; it has no meaning here.
_FOREIGN = {"image_aspect_ratio"}
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
# With thinking, the two budgets say how long a completion may get.
_LENGTHS = ("max_new_tokens", "max_length")

Turns = list[dict[str, Any]]


@dataclass(frozen=True)
class Reading:
    """How requests are read.

    Attributes:
        thinking: Prompts and budgets.
        special_tokens: The tokenizer's, and what stands for media. Where a task's text holds one it is broken up, so
            that a question cannot pose as the prompt's structure.
        named: The generation settings that the user gave by name (``--gen_kwargs``), over the task's.
        system: The model class' own system turn, for prompts without one.
    """

    thinking: ThinkingOptions
    special_tokens: Sequence[str] = ()
    named: Collection[str] = ()
    system: str | None = None


def is_padding(request: Instance) -> bool:
    """Whether lmms-eval added the request only to give every process the same number."""
    return bool((request.metadata or {}).get("__padding_only__"))


def build_samples(requests: Iterable[Instance], documents: Mapping[str, Any], reading: Reading) -> list[Sample]:
    """A sample for each request but padding, in order.

    Args:
        documents: lmms-eval's ``task_dict``: task → split → the documents.
    """
    seen: Counter[tuple[Any, ...]] = Counter()
    samples: list[Sample] = []
    for index, request in enumerate(requests):
        _, doc_to_messages, given, doc_id, task, split = request.args
        # lmms-eval repeats a sample by listing its request again.
        repeat = seen[task, split, doc_id]
        seen[task, split, doc_id] += 1
        if is_padding(request):
            continue
        try:
            messages, media = read_messages(doc_to_messages(documents[task][split][doc_id]), reading)
            digest = hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()
            settings = read_settings(given, reading)
            samples.append(Sample(index, task, split, doc_id, repeat, messages, media, settings, digest))
        except Exception as error:  # A task's own code builds the prompt: anything can come out of it.
            nothing = GenerationSettings((), {})
            samples.append(Sample(index, task, split, doc_id, repeat, [], (), nothing, error=error))
    return samples


def read_messages(given: list[dict[str, Any]], reading: Reading) -> tuple[Turns, tuple[Media, ...]]:
    """(the turns for the chat template, their media) of a prompt in lmms-eval's form.

    Raises:
        ValueError: The prompt holds audio.
    """
    messages: Turns = []
    media: list[Media] = []
    for turn in ChatMessages(messages=given).messages:
        content = []
        for part in turn.content:
            if part.type == "text":
                content.append({"type": "text", "text": _plain(part.text, reading.special_tokens)})
            elif part.type in ("image", "video"):
                clip = {"start": part.start_time, "end": part.end_time} if part.type == "video" else {}
                media.append(Media(part.type, part.url, **clip))
                content.append({"type": part.type})
            else:
                raise ValueError(f"the prompt holds {part.type}: this class takes text, images and videos")
        messages.append({"role": turn.role, "content": content})
    options = reading.thinking
    if options.thinking:
        _ask_for_thinking(messages, options.reasoning_prompt)
    if options.system_prompt is not None:
        messages = [turn for turn in messages if turn["role"] != "system"]
    system = reading.system if options.system_prompt is None else options.system_prompt
    if system is not None and not any(turn["role"] == "system" for turn in messages):
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    return messages, tuple(media)


def read_settings(given: Mapping[str, Any], reading: Reading) -> GenerationSettings:
    """Splits a task's generation settings (with ``--gen_kwargs`` over them) into ``until`` and what transformers takes.

    Only what acts is kept, so that nothing else is part of the resume key. Without ``do_sample`` a temperature above 0
    means sampling; so does one given by name, whatever the task says of ``do_sample``. Where nothing is sampled, the
    sampling settings are left out, as lmms-eval's own classes do. With thinking its budgets rule, and lengths go.

    Raises:
        ValueError: A name that transformers' GenerationConfig does not know.
    """
    generation = {name: value for name, value in given.items() if name not in _FOREIGN}
    until = generation.pop("until", None) or ()
    known = vars(generation_config({}))
    for name in generation:
        if name not in known or name.startswith("_"):
            raise ValueError(
                f"generation setting {name!r} is not known to transformers' GenerationConfig: take it out of "
                "--gen_kwargs or of the task's generation_kwargs"
            )
    warm = (generation.get("temperature") or 0) > 0
    if "temperature" in reading.named and "do_sample" not in reading.named:
        generation["do_sample"] = warm
    generation.setdefault("do_sample", warm)
    if not generation["do_sample"] or generation.get("temperature") == 0:
        generation |= {"do_sample": False, **dict.fromkeys(_SAMPLING)}
    if reading.thinking.thinking:
        generation = {name: value for name, value in generation.items() if name not in _LENGTHS}
    until = (until,) if isinstance(until, str) else tuple(until)
    return GenerationSettings(until, {**generation, "num_beams": generation.get("num_beams", 1)})


def generation_config(settings: Mapping[str, Any]) -> GenerationConfig:
    """transformers' own object of such settings, with its own checks of their values.

    Raises:
        ValueError: One line on a value that is out of range.
    """
    try:
        config: GenerationConfig = GenerationConfig(**settings)
        config.validate()
    except (TypeError, ValueError) as error:
        raise ValueError(f"generation settings: {' '.join(str(error).split())}") from error
    return config


def distinct_settings(requests: Iterable[Instance], reading: Reading) -> list[GenerationSettings]:
    """The different generation settings of all requests, before a single video is read.

    Raises:
        ValueError: As :func:`read_settings`.
    """
    given = {json.dumps(r.args[2], sort_keys=True, default=str): r.args[2] for r in requests if not is_padding(r)}
    return [read_settings(settings, reading) for settings in given.values()]


def overruled(named: Mapping[str, Any], settings: Sequence[GenerationSettings], thinking: ThinkingOptions) -> list[str]:
    """A line on each setting that the user gave by name and that does not act everywhere."""
    idle: dict[str, str] = {}
    if thinking.thinking:
        budgets = f"{thinking.max_thinking_tokens} and max_answer_tokens={thinking.max_answer_tokens}"
        why = f"with thinking=on, where max_thinking_tokens={budgets} rule: set those instead"
        idle |= {name: why for name in _LENGTHS if name in named}
    if any(not each.generation["do_sample"] for each in settings):
        mend = "leave do_sample=False out" if named.get("do_sample") is False else "add temperature=0.7, for instance"
        why = f"where tokens are not sampled: {mend}"
        idle |= {name: why for name in ("do_sample", *_SAMPLING) if named.get(name) not in (None, False, 0)}
    return [f"--gen_kwargs {name}={named[name]} has no effect {why}" for name, why in idle.items()]


def carry_over_prompts(requests: Iterable[Instance], model: str) -> None:
    """Makes the tasks ask as they ask ``model``, by their own ``lmms_eval_specific_kwargs``.

    Raises:
        ValueError: No task has a prompt for it.
    """
    known: set[str] = set()
    tasks = {id(task): task for r in requests if (task := getattr(r.args[1], "__self__", None)) is not None}
    found = False
    for task in tasks.values():
        entries = {k: v for k, v in (task.config.lmms_eval_specific_kwargs or {}).items() if isinstance(v, dict)}
        known |= set(entries)
        if model in entries:
            task.lmms_eval_specific_kwargs, found = entries[model], True
    if tasks and not found:
        names = ", ".join(sorted(known)) or "no model at all"
        raise ValueError(f"task_prompt={model!r}: no task asks that model in its own way, they have {names}")


def _ask_for_thinking(messages: Turns, reasoning_prompt: str | None) -> None:
    """Adds the reasoning instruction to the last user turn, unless the turn has one."""
    users = [turn for turn in messages if turn["role"] == "user"]
    if not users:
        return
    texts = [part for part in users[-1]["content"] if part["type"] == "text"]
    if not texts:
        texts = [{"type": "text", "text": ""}]
        users[-1]["content"].append(texts[0])
    whole = "\n".join(part["text"] for part in texts)
    if add_reasoning_prompt(whole, reasoning_prompt) != whole:
        texts[-1]["text"] = add_reasoning_prompt(texts[-1]["text"], reasoning_prompt)


def _plain(text: str, special_tokens: Sequence[str]) -> str:
    for token in special_tokens:
        text = text.replace(token, f"{token[:1]} {token[1:]}")
    return text
