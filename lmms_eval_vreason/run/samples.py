"""One lmms-eval request → one Sample: who it is, what is asked, which media, how to generate."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.protocol import ChatMessages
from transformers import GenerationConfig

from lmms_eval_vreason.media.media import Media
from lmms_eval_vreason.prompts.protocol import add_reasoning_prompt

# What some stock tasks carry for other models; it has no meaning here.
_FOREIGN_SETTINGS = {"image_aspect_ratio"}
_SAMPLING_SETTINGS = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


@dataclass(frozen=True)
class Settings:
    """How a sample is generated: ``until`` ends the answer, ``generation`` goes to ``generate`` as it is."""

    until: tuple[str, ...]
    generation: dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """One request.

    Attributes:
        index: Its place among the requests.
        task, split, doc_id, repeat: Who it is for lmms-eval.
        messages: (role, content) turns for the chat template; media are placeholders in place.
        media: The images and videos, in the order of their placeholders.
        prompt_digest: Hex digest of the messages' texts and their order.
        settings: How to generate.
    """

    index: int
    task: str
    split: str
    doc_id: Any
    repeat: int
    messages: list[dict[str, Any]]
    media: tuple[Media, ...]
    settings: Settings
    prompt_digest: str = field(default="")

    @property
    def prompt(self) -> str:
        """The user's text as it is sent."""
        return "\n".join(_texts(turn) for turn in self.messages if turn["role"] == "user")

    @property
    def name(self) -> str:
        """How messages to the user call it."""
        repeat = f", repeat {self.repeat}" if self.repeat else ""
        return f"{self.task} doc {self.doc_id}{repeat}"


def is_padding(request: Instance) -> bool:
    """Whether lmms-eval added the request only to give every process the same number."""
    return bool((request.metadata or {}).get("__padding_only__"))


def repeats(requests: Iterable[Instance]) -> list[int]:
    """How often each request's document came before it: lmms-eval repeats a sample by listing its request again."""
    seen: Counter = Counter()
    numbers = []
    for request in requests:
        key = (request.args[4], request.args[5], request.args[3])
        numbers.append(seen[key])
        seen[key] += 1
    return numbers


def build_sample(
    request: Instance,
    document: Any,
    *,
    index: int,
    repeat: int,
    thinking: bool,
    reasoning_prompt: str | None,
    system_prompt: str | None,
    special_tokens: Sequence[str],
) -> Sample:
    """Builds one sample from a chat request and its document.

    Args:
        special_tokens: The tokenizer's; where a task's text holds one, it is broken up, so that a question cannot
            pose as the prompt's structure.

    Raises:
        ValueError: A generation setting that transformers does not know, or audio in the prompt.
    """
    _, doc_to_messages, settings, doc_id, task, split = request.args
    turns = ChatMessages(messages=doc_to_messages(document)).messages
    messages, media = [], []
    for turn in turns:
        content = []
        for part in turn.content:
            if part.type == "text":
                content.append({"type": "text", "text": _plain(part.text, special_tokens)})
            elif part.type in ("image", "video"):
                clip = {"start": part.start_time, "end": part.end_time} if part.type == "video" else {}
                media.append(Media(part.type, part.url, **clip))
                content.append({"type": part.type})
            else:
                raise ValueError(f"{task} doc {doc_id} holds {part.type}, which Qwen2.5-VL cannot take")
        messages.append({"role": turn.role, "content": content})
    if thinking:
        _ask_for_thinking(messages, reasoning_prompt)
    if system_prompt is not None:
        messages = [turn for turn in messages if turn["role"] != "system"]
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system_prompt}]})
    digest = hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()
    return Sample(
        index=index,
        task=task,
        split=split,
        doc_id=doc_id,
        repeat=repeat,
        messages=messages,
        media=tuple(media),
        settings=parse_settings(settings),
        prompt_digest=digest,
    )


def parse_settings(given: dict[str, Any]) -> Settings:
    """Splits a task's generation settings (with ``--gen_kwargs`` over them) into ``until`` and what transformers takes.

    Without ``do_sample`` a temperature above 0 means sampling; where nothing is sampled the sampling settings are left
    out, as lmms-eval's own classes do.

    Raises:
        ValueError: A name that transformers' GenerationConfig does not know.
    """
    given = {name: value for name, value in given.items() if name not in _FOREIGN_SETTINGS}
    until = given.pop("until", None) or ()
    until = (until,) if isinstance(until, str) else tuple(until)
    known = vars(GenerationConfig())
    for name in given:
        if name not in known or name.startswith("_"):
            raise ValueError(
                f"generation setting {name!r} is not known to transformers' GenerationConfig: take it out of "
                "--gen_kwargs or of the task's generation_kwargs"
            )
    given.setdefault("do_sample", (given.get("temperature") or 0) > 0)
    if not given["do_sample"] or given.get("temperature") == 0:
        given["do_sample"] = False
        given.update(dict.fromkeys(_SAMPLING_SETTINGS))
    return Settings(until=until, generation={**given, "num_beams": given.get("num_beams", 1)})


def _ask_for_thinking(messages: list[dict[str, Any]], reasoning_prompt: str | None) -> None:
    users = [turn for turn in messages if turn["role"] == "user"]
    if not users:
        return
    texts = [part for part in users[-1]["content"] if part["type"] == "text"]
    if not texts:
        texts = [{"type": "text", "text": ""}]
        users[-1]["content"].append(texts[0])
    whole = "\n".join(part["text"] for part in texts)
    added = add_reasoning_prompt(whole, reasoning_prompt)
    if added != whole:
        texts[-1]["text"] = add_reasoning_prompt(texts[-1]["text"], reasoning_prompt)


def _texts(turn: dict[str, Any]) -> str:
    return "\n".join(part["text"] for part in turn["content"] if part["type"] == "text")


def _plain(text: str, special_tokens: Sequence[str]) -> str:
    for token in special_tokens:
        if token in text:
            text = text.replace(token, f"{token[:1]} {token[1:]}")
    return text
