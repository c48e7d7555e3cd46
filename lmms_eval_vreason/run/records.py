"""A finished or failed sample → its journal record, and the key by which a later run finds it again."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lmms_eval_vreason.journal.files import digest, file_identity, trace_record
from lmms_eval_vreason.media.media import Media
from lmms_eval_vreason.prompts.split import joined
from lmms_eval_vreason.run.generation import Completion
from lmms_eval_vreason.run.samples import Sample, UnbuiltSample

# Of a trace, what the line at a run's end counts.
_COUNTED = ("updates", "video_tokens", "note")


@dataclass(frozen=True)
class Waiting:
    """A sample that is to be answered.

    Attributes:
        owner: The process whose request it is.
        length: Prompt tokens, estimated; 0 where nobody asked.
    """

    sample: Sample
    key: str
    owner: int = 0
    length: int = 0


def who(sample: Sample | UnbuiltSample) -> dict[str, Any]:
    """Which sample it is for lmms-eval."""
    return {"task": sample.task, "split": sample.split, "doc_id": sample.doc_id, "repeat": sample.repeat}


def sample_key(sample: Sample, settings_digest: str) -> str:
    """Hex digest of all that changes a sample's answer.

    Args:
        settings_digest: Of what besides the sample itself does.
    """
    media = [_media_identity(item) for item in sample.media]
    return digest([settings_digest, tuple(who(sample).values()), sample.prompt_digest, media, asdict(sample.settings)])


def finished_record(
    waiting: Waiting, completion: Completion, *, return_thinking: bool, read_seconds: float, remark: str = ""
) -> dict[str, Any]:
    """The record of an answered sample; ``remark`` says what was done differently for it."""
    return {
        **_head(waiting),
        "thinking": completion.thinking,
        "answer": completion.answer,
        "text": joined(completion.thinking, completion.answer, return_thinking),
        "thinking_cut": completion.thinking_cut,
        "answer_cut": completion.answer_cut,
        "tokens": {
            "input": completion.input_tokens,
            "output": completion.output_tokens,
            "thinking": completion.thinking_tokens,
            "prefilled": completion.prefilled_tokens,
        },
        "seconds": {"read": round(read_seconds, 6), **{k: round(v, 6) for k, v in completion.seconds.items()}},
        "peak_memory_bytes": completion.peak_memory_bytes,
        "trace": trace_record(completion.trace, completion.tokens),
        "remark": remark,
        "error": None,
    }


def failed_record(head: Waiting | Mapping[str, Any], error: BaseException) -> dict[str, Any]:
    """The record of a sample that failed.

    Args:
        head: The sample, or, where it could not even be built, its key and who it is.
    """
    empty = {"thinking": "", "answer": "", "text": "", "thinking_cut": False, "answer_cut": False}
    counts = {"tokens": {"input": 0, "output": 0, "thinking": 0}, "seconds": {}, "peak_memory_bytes": None}
    fault = {"trace": None, "error": {"type": type(error).__name__, "message": str(error)}}
    return {**(_head(head) if isinstance(head, Waiting) else head), **empty, **counts, **fault}


def failure(record: Mapping[str, Any]) -> str:
    """One line on a failed sample, for the user."""
    repeat = f", repeat {record['repeat']}" if record["repeat"] else ""
    lines = f"{record['error']['type']}: {record['error']['message']}".splitlines()
    return f"{record['task']} doc {record['doc_id']}{repeat}: {lines[0]}"


def summary(record: Mapping[str, Any]) -> dict[str, Any]:
    """What other processes need of a record: all but the prompt, the thinking and most of the trace."""
    kept = {k: v for k, v in record.items() if k not in ("trace", "prompt", "thinking", "answer")}
    trace = record["trace"]
    if trace is None:
        return {**kept, "trace": None}
    due = [pair for pair in zip(trace["alpha"], trace["entropy_change"], strict=True) if pair[1] is not None]
    steps = {"alpha": [alpha for alpha, _ in due], "entropy_change": [change for _, change in due]}
    steps["shift"] = trace["shift"][-1:]
    return {**kept, "trace": {**{name: trace[name] for name in _COUNTED}, **steps}}


def _head(waiting: Waiting) -> dict[str, Any]:
    sample = waiting.sample
    return {
        "key": waiting.key,
        **who(sample),
        "prompt_digest": sample.prompt_digest,
        "prompt": sample.prompt,
        "media": [item.source if item.is_path else f"({item.kind})" for item in sample.media],
    }


def _media_identity(media: Media) -> list[Any]:
    clip = [media.kind, media.start, media.end]
    if media.is_path:
        return [*clip, *file_identity(media.source)]
    items = media.source if isinstance(media.source, list | tuple) else [media.source]
    pixels = hashlib.sha256()
    for item in items:
        pixels.update(item.tobytes() if hasattr(item, "tobytes") else repr(item).encode())
    return [*clip, pixels.hexdigest()]
