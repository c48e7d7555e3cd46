"""Waiting samples → batches: the next videos are read ahead, and neighbours that go together are put together."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import tee
from typing import Any

from lmms_eval_vreason.media.frames import Frames, read_media
from lmms_eval_vreason.media.media import Media
from lmms_eval_vreason.media.options import VideoOptions
from lmms_eval_vreason.media.reader import read_ahead
from lmms_eval_vreason.media.rule import QWEN2, FrameRule
from lmms_eval_vreason.run.batch_size import BatchSize
from lmms_eval_vreason.run.processes import Team
from lmms_eval_vreason.run.samples import Waiting

# A batch costs its longest prompt times its size, so one very long prompt is not padded to by short ones.
_MOST_TIMES_LONGER, _MOST_TOKENS_LONGER = 2, 512


@dataclass(frozen=True)
class Question:
    """A sample that this process answers.

    Attributes:
        media: Its images and videos, read.
        read_seconds: Time it took to read them, charged to the first of the neighbours that share them.
        error: Why its prompt could not be built or its media could not be read.
    """

    waiting: Waiting
    media: Sequence[Any] = ()
    read_seconds: float = 0.0
    error: BaseException | None = None


def read(
    candidates: Iterable[Waiting], team: Team, options: VideoOptions, size: BatchSize, rule: FrameRule = QWEN2
) -> Iterator[Question]:
    """The candidates that this process takes, in order, each with its media.

    Raises:
        PeerStopped: Another process has failed.
    """

    def timed_reading(media: tuple[Media, ...]) -> tuple[list[Any], float]:
        started = time.perf_counter()
        return read_media(media, options, rule), time.perf_counter() - started

    candidates, ahead = tee(candidates)
    keys = (waiting.sample.media for waiting in ahead)
    charged = None
    readings = read_ahead(keys, timed_reading, options.read_ahead, lambda: size.now)
    for waiting, (_, reading) in zip(candidates, readings, strict=True):
        if not team.take(waiting):
            continue
        if (error := waiting.sample.error or reading.exception()) is not None:
            yield Question(waiting, error=error)
            continue
        media, seconds = reading.result()
        yield Question(waiting, media, 0.0 if reading is charged else seconds)
        charged = reading


def batches(questions: Iterable[Question], size: BatchSize, rule: FrameRule = QWEN2) -> Iterator[list[Question]]:
    """Neighbours that go together, up to the size of the moment. A question that could not be read is by itself."""
    batch: list[Question] = []
    for question in questions:
        if question.error is not None:
            yield [question]
            continue
        if batch and not _go_together([*batch, question], rule):
            yield batch
            batch = []
        batch.append(question)
        if len(batch) >= size.now:
            # At once: the next question does not come before its video is read.
            yield batch
            batch = []
    if batch:
        yield batch


def _go_together(batch: Sequence[Question], rule: FrameRule) -> bool:
    if rule.token_side is None and _shape(batch[0]) != _shape(batch[-1]):
        return False  # These processors stack videos, and fill shorter ones up with frames that a prompt would show.
    lengths = [question.waiting.length for question in batch]
    alike = max(lengths) <= _MOST_TIMES_LONGER * min(lengths) + _MOST_TOKENS_LONGER
    return alike and batch[0].waiting.sample.settings == batch[-1].waiting.sample.settings


def _shape(question: Question) -> list[int]:
    """The frames of each medium; 0 for an image."""
    return [len(item.pixels) if isinstance(item, Frames) else 0 for item in question.media]
