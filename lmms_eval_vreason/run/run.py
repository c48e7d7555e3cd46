"""One call of ``generate_until``: requests in lmms-eval's order → finished samples, one by one, in a good order.

Finished samples come from the journal; the rest is shared out among the processes, put in an order that keeps questions
on one video together, read ahead, batched, answered, and written down one by one. A fault of one sample stays with it.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, tee
from typing import Any

from tqdm import tqdm

from lmms_eval_vreason.journal.files import Journal, digest
from lmms_eval_vreason.media.frames import read_media
from lmms_eval_vreason.media.media import Media
from lmms_eval_vreason.media.reader import read_ahead
from lmms_eval_vreason.prompts.split import joined
from lmms_eval_vreason.run.batch_size import BatchSize, is_out_of_memory, release
from lmms_eval_vreason.run.batching import Padding, grouped, prompt_lengths
from lmms_eval_vreason.run.generation import Completion, Generator
from lmms_eval_vreason.run.options import AnswerOptions
from lmms_eval_vreason.run.processes import PeerStopped, Team
from lmms_eval_vreason.run.records import Waiting, failed_record, failure, finished_record, sample_key, summary, who
from lmms_eval_vreason.run.samples import Sample, UnbuiltSample

_SHOWN_ERRORS = 10
# The paper's Lite, for a sample that does not fit into memory otherwise.
_LITE = {"prune_ratio": 0.5}

# Read media of one sample, and the seconds it took.
Reading = tuple[list[Any], float]
Batch = list[tuple[Waiting, Reading]]


class TooManyErrors(RuntimeError):
    """More samples have failed, over all processes, than ``max_error_rate`` allows."""


class Run:
    """Answers a list of requests, together with the other processes of its team.

    Attributes:
        records: Index of a request → its journal record (made also where nothing is journaled); what another process
            has answered is without prompt, thinking and the trace's tokens.
        everybody: The records of all processes' requests, once :meth:`answer` is through.
        padding: Over the batches of this process.
    """

    def __init__(
        self,
        generator: Generator,
        options: AnswerOptions,
        journal: Journal | None,
        settings: Mapping[str, Any],
        size: BatchSize,
        team: Team,
    ) -> None:
        """Args: ``settings``, what besides a sample itself changes its answer."""
        self.generator, self.options, self.journal, self.size, self.team = generator, options, journal, size, team
        self.settings_digest = digest(dict(settings))
        self.records: dict[int, dict[str, Any]] = {}
        self.everybody: list[dict[str, Any]] = []
        self.padding = Padding()
        self._for_others: list[tuple[int, int, dict[str, Any]]] = []
        self._unbuilt: list[tuple[int, dict[str, Any], Exception]] = []

    def answer(self, samples: Sequence[Sample | UnbuiltSample]) -> None:
        """Fills ``records`` for all samples. Every process of the team has to call it.

        Raises:
            TooManyErrors: More than ``max_error_rate`` of the samples failed (one failure is always borne).
            PeerStopped: Another process has failed or is gone.
        """
        try:
            own = [w for sample in self._samples(samples) if (w := self._waiting(sample)) is not None]
            with_us, shared = self._share_out(own)
            with self._bar:
                for index, head, error in self._unbuilt:
                    self._fail(self.team.rank, index, head, error)
                self._expect(with_us, shared)
                for batch in self._batches(chain(chain.from_iterable(with_us), self.team.candidates(shared))):
                    self._answer_batch(batch)
                self.generator.expect((), 0)
                self._collect()
        except BaseException as error:
            if not isinstance(error, PeerStopped):
                self.team.stop(f"{type(error).__name__}: {error}")
            raise

    def text(self, index: int) -> str:
        """What lmms-eval gets for a request; nothing for padding, whose answer nobody reads."""
        record = self.records.get(index)
        return "" if record is None else record["text"]

    @property
    def finished(self) -> int:
        """How many samples this process has come to the end of."""
        return len(self.records) + len(self._for_others)

    def _samples(self, samples: Sequence[Sample | UnbuiltSample]) -> Iterator[Sample]:
        self._own_total = len(samples)
        for sample in samples:
            if isinstance(sample, Sample):
                yield sample
            else:
                key = digest([self.settings_digest, who(sample)])
                self._unbuilt.append((sample.index, {**who(sample), "key": key}, sample.error))

    def _waiting(self, sample: Sample) -> Waiting | None:
        """The sample as it waits to be answered; None if the journal has its answer."""
        key = sample_key(sample, self.settings_digest)
        record = self.journal.finished.get(key) if self.journal is not None else None
        if record is None:
            return Waiting(sample, key, self.team.rank)
        text = joined(record["thinking"], record["answer"], self.options.thinking.return_thinking)
        self.records[sample.index] = {**record, "text": text}
        return None

    def _share_out(self, own: list[Waiting]) -> tuple[list[list[Waiting]], list[list[Waiting]]]:
        """(groups that only this process can answer, groups of all processes), and the bar over all samples."""
        if self.team.size > 1 or self.size.auto or self.size.now != 1:
            # Only there does it matter, and it opens every file.
            lengths = prompt_lengths([w.sample for w in own], self.options.video)
            own = [replace(w, length=length) for w, length in zip(own, lengths, strict=True)]
        # What a task holds in memory stays where it is.
        small = [w for w in own if all(item.is_path for item in w.sample.media)]
        large = [w for w in own if not all(item.is_path for item in w.sample.media)]
        shares = self.team.gather((self._own_total, len(self.records), small))
        self._total, resumed = sum(share[0] for share in shares), sum(share[1] for share in shares)
        self._bar = tqdm(
            total=self._total, initial=resumed, desc="V-Reason", unit="sample", disable=self.team.rank != 0
        )
        self._resumed = resumed
        return grouped(large), grouped(chain.from_iterable(share[2] for share in shares))

    def _expect(self, with_us: list[list[Waiting]], shared: list[list[Waiting]]) -> None:
        samples = [w.sample for group in (*with_us, *shared) for w in group]
        batch = None if self.size.auto else self.size.now
        self.generator.expect(samples, self.options.run.shared_prefix, batch=batch, share=1 / self.team.size)

    def _batches(self, candidates: Iterable[Waiting]) -> Iterator[Batch]:
        """Neighbours with the same settings, as many as fit, taken by this process and with their media read."""
        batch: Batch = []
        candidates, ahead = tee(candidates)
        readings = read_ahead(
            (w.sample.media for w in ahead), self._read, self.options.video.read_ahead, lambda: self.size.now
        )
        borne = None  # The reading whose seconds a question on it has borne.
        for waiting, (_, reading) in zip(candidates, readings, strict=True):
            if batch and batch[0][0].sample.settings != waiting.sample.settings:
                yield batch
                batch = []
            if not self.team.take(waiting):
                continue
            if (error := reading.exception()) is not None:
                self._fail(waiting.owner, waiting.sample.index, waiting, error)
            else:
                media, seconds = reading.result()
                batch.append((waiting, (media, 0.0 if reading is borne else seconds)))
                borne = reading
            if len(batch) >= self.size.now:
                # At once: the next candidate is not here before its video is read.
                yield batch
                batch = []
        if batch:
            yield batch

    def _read(self, media: tuple[Media, ...]) -> Reading:
        started = time.perf_counter()
        return read_media(media, self.options.video), time.perf_counter() - started

    def _answer_batch(self, batch: Batch) -> None:
        """Answers a batch; when it fails, its halves, down to the one sample whose fault it is."""
        self.size.start()
        try:
            completions = self.generator.generate([w.sample for w, _ in batch], [media for _, (media, _) in batch])
        except Exception as error:
            fault = error
        else:
            self.size.worked(len(batch))
            self.padding.add([completion.input_tokens for completion in completions])
            for (waiting, (_, seconds)), completion in zip(batch, completions, strict=True):
                self._finish(waiting, completion, seconds)
            return
        release(fault)
        if is_out_of_memory(fault):
            self.size.ran_out(len(batch))
        if len(batch) == 1:
            self._answer_failed(*batch[0], fault)
            return
        half = len(batch) // 2
        self._answer_batch(batch[:half])
        self._answer_batch(batch[half:])

    def _answer_failed(self, waiting: Waiting, reading: Reading, fault: Exception) -> None:
        """The last word on a sample that failed alone: once more with Lite if memory was short and the user asked."""
        if is_out_of_memory(fault) and self.options.run.oom == "lite" and not self.options.method.prune_ratio:
            media, seconds = reading
            try:
                (completion,) = self.generator.generate(
                    [waiting.sample], [media], replace(self.options.method, **_LITE)
                )
            except Exception as error:
                fault = error
            else:
                self._finish(waiting, completion, seconds, remark="out of memory: answered with prune_ratio=0.5")
                return
        self._fail(waiting.owner, waiting.sample.index, waiting, fault)

    def _finish(self, waiting: Waiting, completion: Completion, read_seconds: float, remark: str = "") -> None:
        thinking = self.options.thinking.return_thinking
        record = finished_record(
            waiting, completion, return_thinking=thinking, read_seconds=read_seconds, remark=remark
        )
        self._store(waiting.owner, waiting.sample.index, record)

    def _fail(self, owner: int, index: int, head: Waiting | dict[str, Any], error: BaseException) -> None:
        if self.options.run.on_error == "raise":
            raise error
        record = failed_record(head, error)
        self._store(owner, index, record)
        failed = self.team.count("failed")
        if failed > max(1, int(self.options.run.max_error_rate * self._total)):
            raise TooManyErrors(
                f"{failed} of {self._total} samples failed, over max_error_rate="
                f"{self.options.run.max_error_rate:g} (last: {failure(record)}). Mend the cause and run the same "
                "command again: finished samples are in the journal"
            ) from error

    def _store(self, owner: int, index: int, record: dict[str, Any]) -> None:
        if self.journal is not None:
            self.journal.add(record)
        if owner == self.team.rank:
            self.records[index] = record
        else:
            self._for_others.append((owner, index, summary(record)))
        self.team.count("tokens", record["tokens"]["output"])
        self.team.count("done")
        self._draw()

    def _draw(self) -> None:
        """Brings the bar to what all processes have done."""
        if self._bar.disable:
            return
        self._bar.update(self.team.count("done", 0) + self._resumed - self._bar.n)
        tokens = self.team.count("tokens", 0)
        if elapsed := self._bar.format_dict["elapsed"]:
            self._bar.set_postfix_str(f"{tokens} tokens, {tokens / elapsed:.1f} tokens/s", refresh=False)

    def _collect(self) -> None:
        """Hands every process the records of its own requests."""
        own = [] if self.team.size == 1 else [summary(record) for record in self.records.values()]
        shares = self.team.gather((own, self._for_others), meanwhile=self._draw)
        self._draw()
        for _, answered in shares:
            self.records.update({index: record for owner, index, record in answered if owner == self.team.rank})
        if self.team.size == 1:
            self.everybody = list(self.records.values())
        else:
            self.everybody = [*chain.from_iterable(own for own, _ in shares)]
            self.everybody += [record for _, answered in shares for _, _, record in answered]

    def failures(self) -> list[str]:
        """What the user hears of the samples that failed, over all processes; nothing if none did."""
        lines = [failure(record) for record in self.everybody if record["error"] is not None]
        if not lines:
            return []
        return [*lines[:_SHOWN_ERRORS], f"{len(lines)} of {self._total} samples failed and count as unanswered"]
