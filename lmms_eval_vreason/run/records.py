"""Outcomes → records: each is written down as it comes, failures are counted, and requests get their records back.

A record has the key by which a later run finds the sample's answer again.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

import numpy as np

from lmms_eval_vreason.journal.files import digest, file_identity
from lmms_eval_vreason.journal.writer import Journal
from lmms_eval_vreason.media.frames import Frames
from lmms_eval_vreason.media.media import Media
from lmms_eval_vreason.method.trace import COLUMNS, Trace
from lmms_eval_vreason.prompts.split import joined
from lmms_eval_vreason.run.answers import Outcome
from lmms_eval_vreason.run.options import AnswerOptions
from lmms_eval_vreason.run.processes import Team
from lmms_eval_vreason.run.progress import Progress
from lmms_eval_vreason.run.samples import Sample, Waiting

_SHOWN_ERRORS = 10
_DIGITS = 6  # Significant ones, of a trace's numbers.


class TooManyErrors(RuntimeError):
    """More samples have failed, over all processes, than ``max_error_rate`` allows."""


class Ledger:
    """The records of one run, on one process.

    Attributes:
        finished: (owner, index of its request, record) of each sample that this process has finished, with those that
            the journal held.
        records: Index of a request of this process → its record, after :meth:`collect`.
        everybody: The records of all processes' requests, after :meth:`collect`.
    """

    def __init__(self, journal: Journal | None, team: Team, options: AnswerOptions) -> None:
        self.records: dict[int, dict[str, Any]] = {}
        self.everybody: list[dict[str, Any]] = []
        self._journal, self._team, self._options = journal, team, options.run
        self._return_thinking = options.thinking.return_thinking
        self.finished: list[tuple[int, int, dict[str, Any]]] = []

    def resume(self, index: int, record: Mapping[str, Any]) -> None:
        """Takes the journal's record of one of this process' requests."""
        text = joined(record["thinking"], record["answer"], self._return_thinking)
        self.finished.append((self._team.rank, index, {**record, "text": text}))

    def add(self, outcome: Outcome, progress: Progress) -> None:
        """Writes an outcome down; it is in the journal when this returns.

        Raises:
            Exception: The outcome's error, with ``on_error=raise``.
            TooManyErrors: One failure too many, over all processes.
        """
        waiting, error = outcome.question.waiting, outcome.error
        if error is not None and self._options.on_error == "raise":
            raise error  # It ends the run, and the next one tries the sample again.
        record, trace = sample_record(outcome, self._return_thinking)
        if self._journal is not None:
            self._journal.add(record, trace)
        self.finished.append((waiting.owner, waiting.sample.index, record))
        progress.add(record["tokens"]["output"])
        if error is not None:
            self._count_failure(error, progress.total)

    def collect(self, progress: Progress) -> None:
        """Hands every process the records of its own requests. Every process of the team has to call it."""
        shares = self._team.gather(self.finished, meanwhile=progress.draw)
        progress.draw()
        everything = list(chain.from_iterable(shares))
        self.records = {index: record for owner, index, record in everything if owner == self._team.rank}
        self.everybody = [record for _, _, record in everything]

    def failures(self) -> list[str]:
        """Lines for the user on the samples that failed, over all processes; none if none did."""
        lines = [failure(record) for record in self.everybody if record["error"] is not None]
        if not lines:
            return []
        total = f"{len(lines)} of {len(self.everybody)} samples failed and count as unanswered"
        return [*lines[:_SHOWN_ERRORS], total]

    def _count_failure(self, error: BaseException, total: int) -> None:
        failed, rate = self._team.count("failed"), self._options.max_error_rate
        if failed > max(1, int(rate * total)):
            raise TooManyErrors(
                f"{failed} of {total} samples failed, over max_error_rate={rate:g} (last: {type(error).__name__}: "
                f"{error}). Mend the cause and run the same command again: finished samples are in the journal"
            ) from error


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
    record, completion, error = _unanswered(outcome.question.waiting), outcome.completion, outcome.error
    if completion is None:
        return {**record, "error": {"type": type(error).__name__, "message": str(error)}}, None
    parts, seconds = asdict(completion.outcome), {"read": outcome.question.read_seconds, **completion.seconds}
    record |= {
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
        "shown": [shown(item) for item in outcome.question.media],
    }
    return record, trace_columns(completion.trace, completion.tokens)


def shown(item: Any) -> dict[str, int]:
    """What the model saw of a read image or video: its frames, and their size in pixels."""
    if isinstance(item, Frames):
        frames, _, height, width = item.pixels.shape
        clip = item.metadata.get("total_num_frames") or frames
        return {"frames": frames, "height": height, "width": width, "clip_frames": int(clip)}
    return {"frames": 1, "height": item.height, "width": item.width, "clip_frames": 1}


def trace_columns(trace: Trace, tokens: Sequence[str]) -> dict[str, Any]:
    """A trace token by token: six significant digits; nan becomes null."""
    return {"tokens": list(tokens), **{name: [_number(value) for value in getattr(trace, name)] for name in COLUMNS}}


def trace_summary(trace: Trace) -> dict[str, Any]:
    """A trace in a few numbers, for the sample's own line. ΔH is a mean over the updates of one sign, in nats."""
    lowering, raising = (_mean_change(trace, sign) for sign in (-1, 1))
    shifts = trace.shift[trace.alpha != 0]
    return {
        "updates": trace.updates,
        "ordinary_steps": trace.ordinary_steps,
        "due_steps": trace.due_steps,
        "peak_index": trace.peak_index,
        "video_tokens": trace.video_tokens,
        "last_shift": _number(shifts[-1]) if len(shifts) else None,
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


def _unanswered(waiting: Waiting) -> dict[str, Any]:
    """All fields of a record, as they are before there is an answer."""
    sample = waiting.sample
    return {
        "key": waiting.key,
        **who(sample),
        "prompt_digest": sample.prompt_digest,
        "prompt": sample.prompt,
        "media": [item.source if item.is_path else f"({item.kind})" for item in sample.media],
        "tokens": dict.fromkeys(("input", "output", "thinking", "prefilled"), 0),
        **dict.fromkeys(("thinking", "answer"), ""),
        **dict.fromkeys(("thinking_cut", "answer_cut"), False),
        "text": "",
        "seconds": {},
        **dict.fromkeys(("peak_memory_bytes", "trace")),
        "remark": "",
        "shown": [],
        "error": None,
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
