"""Outcomes → journal records, and the key by which a later run finds a sample's answer again."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from lmms_eval_vreason.journal.files import digest, file_identity
from lmms_eval_vreason.media.media import Media
from lmms_eval_vreason.method.trace import COLUMNS, Trace
from lmms_eval_vreason.prompts.split import joined
from lmms_eval_vreason.run.answers import Outcome
from lmms_eval_vreason.run.samples import Sample, Waiting

_DIGITS = 6  # Significant ones, of a trace's numbers.


def who(sample: Sample) -> dict[str, Any]:
    """Which sample it is for lmms-eval."""
    return {"task": sample.task, "split": sample.split, "doc_id": sample.doc_id, "repeat": sample.repeat}


def sample_key(sample: Sample, settings: str) -> str:
    """Hex digest of all that changes a sample's answer.

    Args:
        settings: Digest of what besides the sample itself does.
    """
    media = [_media_identity(item) for item in sample.media]
    return digest([settings, tuple(who(sample).values()), sample.prompt_digest, media, asdict(sample.settings)])


def sample_record(outcome: Outcome, return_thinking: bool) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """A sample's two lines in the journal: its record, and its trace token by token (None for a failed sample)."""
    waiting, completion = outcome.question.waiting, outcome.completion
    if completion is None:
        return {**_head(waiting), **_failed(outcome.error)}, None
    parts, seconds = asdict(completion.outcome), {"read": outcome.question.read_seconds, **completion.seconds}
    record = {
        **_head(waiting),
        "tokens": {
            "input": completion.input_tokens,
            "output": len(completion.tokens),
            "thinking": parts.pop("thinking_tokens"),
            "prefilled": completion.prefilled_tokens,
        },
        **parts,
        "text": joined(parts["thinking"], parts["answer"], return_thinking),
        "seconds": {name: round(value, 6) for name, value in seconds.items()},
        "peak_memory_bytes": completion.peak_memory_bytes,
        "trace": trace_summary(completion.trace),
        "remark": outcome.remark,
        "error": None,
    }
    return record, trace_columns(completion.trace, completion.tokens)


def trace_columns(trace: Trace, tokens: Sequence[str]) -> dict[str, Any]:
    """A trace token by token: six significant digits; nan becomes null."""
    return {"tokens": list(tokens), **{name: [_number(value) for value in getattr(trace, name)] for name in COLUMNS}}


def trace_summary(trace: Trace) -> dict[str, Any]:
    """A trace in a few numbers, for the sample's own line. ΔH is a mean over the updates of one sign, in nats."""
    lowering, raising = (_mean_change(trace, sign) for sign in (-1, 1))
    return {
        "updates": trace.updates,
        "due_steps": trace.due_steps,
        "peak_index": trace.peak_index,
        "video_tokens": trace.video_tokens,
        "last_shift": _number(trace.shift[-1]) if len(trace.shift) else None,
        "lowering": lowering,
        "raising": raising,
        "refreshed": _refreshed(trace),
        "note": trace.note,
    }


def failure(record: Mapping[str, Any]) -> str:
    """One line on a failed sample, for the user."""
    repeat = f", repeat {record['repeat']}" if record["repeat"] else ""
    lines = f"{record['error']['type']}: {record['error']['message']}".splitlines()
    return f"{record['task']} doc {record['doc_id']}{repeat}: {lines[0]}"


def _mean_change(trace: Trace, sign: int) -> dict[str, Any]:
    changes = [float(c) for a, c in zip(trace.alpha, trace.entropy_change, strict=True) if a == sign and c == c]
    return {"updates": len(changes), "entropy_change": _number(sum(changes) / len(changes)) if changes else None}


def _refreshed(trace: Trace) -> dict[str, Any]:
    """The updates whose ΔH is known, of both signs: how strong they are, beside the entropy that they found."""
    known = ~np.isnan(trace.entropy_change)
    if not known.any():
        return {"updates": 0, "entropy": None, "absolute_change": None, "changed": 0}
    return {
        "updates": int(known.sum()),
        "entropy": _number(trace.entropy[known].mean()),
        "absolute_change": _number(np.abs(trace.entropy_change[known]).mean()),
        "changed": int(trace.changed[known].sum()),
    }


def _number(value: float) -> float | int | None:
    value = float(value)
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.{_DIGITS}g}")
    return int(rounded) if rounded.is_integer() else rounded


def _failed(error: BaseException | None) -> dict[str, Any]:
    return {
        **dict.fromkeys(("thinking", "answer", "text"), ""),
        **dict.fromkeys(("thinking_cut", "answer_cut"), False),
        "tokens": dict.fromkeys(("input", "output", "thinking", "prefilled"), 0),
        "seconds": {},
        "peak_memory_bytes": None,
        "trace": None,
        "remark": "",
        "error": {"type": type(error).__name__, "message": str(error)},
    }


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
        # The bytes alone would be those of another picture that is as large, and as black.
        pixels.update(repr([getattr(item, name, None) for name in ("mode", "size", "shape")]).encode())
        pixels.update(item.tobytes() if hasattr(item, "tobytes") else repr(item).encode())
    return [*clip, pixels.hexdigest()]
