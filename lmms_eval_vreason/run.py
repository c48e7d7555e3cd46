"""One call of ``generate_until``: requests in lmms-eval's order → finished samples, one by one, in a good order.

Finished samples come from the journal; the rest is put in an order that keeps questions on one video together, read
ahead, batched, answered, and written down one by one. A fault of one sample stays with it.
"""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from lmms_eval.api.instance import Instance
from loguru import logger
from tqdm import tqdm

from lmms_eval_vreason.generation import Completion, Generator
from lmms_eval_vreason.journal import Journal, digest, file_identity, trace_record
from lmms_eval_vreason.options import Options
from lmms_eval_vreason.protocol import joined
from lmms_eval_vreason.samples import Media, Sample, build_sample, is_padding, repeats
from lmms_eval_vreason.video import read_ahead, read_media

_SHOWN_ERRORS = 10
# The paper's Lite, for a sample that does not fit into memory otherwise.
_LITE = {"prune_ratio": 0.5}

# Read media of one sample, and the seconds it took.
Reading = tuple[list[Any], float]


class TooManyErrors(RuntimeError):
    """More samples have failed than ``max_error_rate`` allows."""


class Run:
    """Answers a list of requests.

    Attributes:
        records: Index of a request → its journal record (made also where nothing is journaled).
    """

    def __init__(
        self, generator: Generator, options: Options, journal: Journal | None, settings: Mapping[str, Any], show: bool
    ) -> None:
        """Args: ``settings``, what besides a sample itself changes its answer; ``show``, whether to draw progress."""
        self.generator, self.options, self.journal = generator, options, journal
        self.settings_digest = digest(dict(settings))
        self.show = show
        self.records: dict[int, dict[str, Any]] = {}
        self._failed: list[str] = []
        self._tokens = 0

    def answer(self, requests: Sequence[Instance], documents: Mapping[str, Any]) -> None:
        """Fills ``records`` for all requests but padding.

        Args:
            documents: lmms-eval's ``task_dict``: task → split → the documents.

        Raises:
            TooManyErrors: More than ``max_error_rate`` of the samples failed (one failure is always borne).
        """
        self._total = sum(not is_padding(request) for request in requests)
        with tqdm(total=self._total, desc="V-Reason", unit="sample", disable=not self.show) as self._bar:
            samples = list(self._samples(requests, documents))
            self._keys = {sample.index: self._key(sample) for sample in samples}
            waiting = [sample for sample in samples if not self._take_from_journal(sample)]
            self.generator.expect(waiting, self.options.run.shared_prefix)
            for batch in self._batches(sorted(waiting, key=_order)):
                self._answer_batch(batch)
            self.generator.expect((), 0)
        for line in self._failed[:_SHOWN_ERRORS]:
            logger.warning(line)
        if self._failed:
            logger.warning(f"{len(self._failed)} of {self._total} samples failed and count as unanswered")

    def text(self, index: int) -> str:
        """What lmms-eval gets for a request; nothing for padding, whose answer nobody reads."""
        record = self.records.get(index)
        return "" if record is None else record["text"]

    def _samples(self, requests: Sequence[Instance], documents: Mapping[str, Any]) -> Iterator[Sample]:
        thinking = self.options.thinking
        special = [t for t in self.generator.tokenizer.all_special_tokens if t.startswith("<|")]
        for index, (request, repeat) in enumerate(zip(requests, repeats(requests), strict=True)):
            if is_padding(request):
                continue
            _, _, _, doc_id, task, split = request.args
            try:
                yield build_sample(
                    request,
                    documents[task][split][doc_id],
                    index=index,
                    repeat=repeat,
                    thinking=thinking.thinking,
                    reasoning_prompt=thinking.reasoning_prompt,
                    system_prompt=thinking.system_prompt,
                    special_tokens=special,
                )
            except Exception as error:  # A task's own code builds the prompt: anything can come out of it.
                who = {"task": task, "split": split, "doc_id": doc_id, "repeat": repeat}
                self._fail(index, who, f"{task} doc {doc_id}", error)

    def _key(self, sample: Sample) -> str:
        who = (sample.task, sample.split, sample.doc_id, sample.repeat)
        media = [_media_identity(item) for item in sample.media]
        return digest([self.settings_digest, who, sample.prompt_digest, media, asdict(sample.settings)])

    def _take_from_journal(self, sample: Sample) -> bool:
        record = self.journal.finished.get(self._keys[sample.index]) if self.journal is not None else None
        if record is None:
            return False
        text = joined(record["thinking"], record["answer"], self.options.thinking.return_thinking)
        self.records[sample.index] = {**record, "text": text}
        self._bar.update()
        return True

    def _batches(self, samples: Sequence[Sample]) -> Iterator[list[tuple[Sample, Reading]]]:
        """Neighbours with the same settings, at most ``batch_size``, with their media read."""
        batch: list[tuple[Sample, Reading]] = []
        readings = read_ahead((s.media for s in samples), self._read, self.options.video.read_ahead)
        for sample, (_, reading) in zip(samples, readings, strict=True):
            full = len(batch) == self.options.model.batch_size
            if batch and (full or batch[0][0].settings != sample.settings):
                yield batch
                batch = []
            if (error := reading.exception()) is not None:
                self._fail(sample.index, _who(sample), sample.name, error, sample)
            else:
                batch.append((sample, reading.result()))
        if batch:
            yield batch

    def _read(self, media: tuple[Media, ...]) -> Reading:
        started = time.perf_counter()
        return read_media(media, self.options.video), time.perf_counter() - started

    def _answer_batch(self, batch: list[tuple[Sample, Reading]]) -> None:
        """Answers a batch; when it fails, its halves, down to the one sample whose fault it is."""
        try:
            completions = self.generator.generate([s for s, _ in batch], [media for _, (media, _) in batch])
        except Exception as error:
            fault = error
        else:
            for (sample, (_, seconds)), completion in zip(batch, completions, strict=True):
                self._finish(sample, completion, seconds)
            return
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(batch) == 1:
            self._answer_failed(*batch[0], fault)
            return
        half = len(batch) // 2
        self._answer_batch(batch[:half])
        self._answer_batch(batch[half:])

    def _answer_failed(self, sample: Sample, reading: Reading, fault: Exception) -> None:
        """The last word on a sample that failed alone: once more with Lite if memory was short and the user asked."""
        out_of_memory = isinstance(fault, torch.OutOfMemoryError | MemoryError)
        if out_of_memory and self.options.run.oom == "lite" and not self.options.method.prune_ratio:
            media, seconds = reading
            try:
                (completion,) = self.generator.generate([sample], [media], replace(self.options.method, **_LITE))
            except Exception as error:
                fault = error
            else:
                self._finish(sample, completion, seconds, remark="out of memory: answered with prune_ratio=0.5")
                return
        self._fail(sample.index, _who(sample), sample.name, fault, sample)

    def _finish(self, sample: Sample, completion: Completion, read_seconds: float, remark: str = "") -> None:
        record = {
            **self._head(sample),
            "thinking": completion.thinking,
            "answer": completion.answer,
            "text": joined(completion.thinking, completion.answer, self.options.thinking.return_thinking),
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
        self._store(sample.index, record)

    def _fail(
        self, index: int, who: dict[str, Any], name: str, error: BaseException, sample: Sample | None = None
    ) -> None:
        if self.options.run.on_error == "raise":
            raise error
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        self._failed.append(f"{name}: {message}")
        head = self._head(sample) if sample is not None else {**who, "key": digest([self.settings_digest, who])}
        empty = {"thinking": "", "answer": "", "text": "", "thinking_cut": False, "answer_cut": False}
        counts = {"tokens": {"input": 0, "output": 0, "thinking": 0}, "seconds": {}, "peak_memory_bytes": None}
        fault = {"trace": None, "error": {"type": type(error).__name__, "message": str(error)}}
        self._store(index, {**head, **empty, **counts, **fault})
        allowed = max(1, int(self.options.run.max_error_rate * self._total))
        if len(self._failed) > allowed:
            raise TooManyErrors(
                f"{len(self._failed)} of {self._total} samples failed, over max_error_rate="
                f"{self.options.run.max_error_rate:g} (last: {self._failed[-1]}). Mend the cause and run the same "
                "command again: finished samples are in the journal"
            ) from error

    def _head(self, sample: Sample) -> dict[str, Any]:
        return {
            "key": self._keys[sample.index],
            **_who(sample),
            "prompt_digest": sample.prompt_digest,
            "prompt": sample.prompt,
            "media": [item.source if item.is_path else f"({item.kind})" for item in sample.media],
        }

    def _store(self, index: int, record: dict[str, Any]) -> None:
        if self.journal is not None:
            self.journal.add(record)
        self.records[index] = record
        self._bar.update()
        self._tokens += record["tokens"]["output"]
        if elapsed := self._bar.format_dict["elapsed"]:
            self._bar.set_postfix_str(f"{self._tokens / elapsed:.1f} tokens/s", refresh=False)


def _who(sample: Sample) -> dict[str, Any]:
    return {"task": sample.task, "split": sample.split, "doc_id": sample.doc_id, "repeat": sample.repeat}


def _order(sample: Sample) -> tuple[str, str, int]:
    first = sample.media[0] if sample.media else None
    return (repr(sample.settings), str(first.source) if first is not None and first.is_path else "", sample.index)


def _media_identity(media: Media) -> list[Any]:
    clip = [media.kind, media.start, media.end]
    if media.is_path:
        return [*clip, *file_identity(media.source)]
    items = media.source if isinstance(media.source, list | tuple) else [media.source]
    pixels = hashlib.sha256()
    for item in items:
        pixels.update(item.tobytes() if hasattr(item, "tobytes") else repr(item).encode())
    return [*clip, pixels.hexdigest()]
