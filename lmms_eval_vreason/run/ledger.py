"""Outcomes → records: each is written down as it comes, failures are counted, and requests get their records back."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

from lmms_eval_vreason.journal.writer import Journal
from lmms_eval_vreason.prompts.split import joined
from lmms_eval_vreason.run.answers import Outcome
from lmms_eval_vreason.run.options import AnswerOptions
from lmms_eval_vreason.run.processes import Team
from lmms_eval_vreason.run.progress import Progress
from lmms_eval_vreason.run.records import failure, sample_record

_SHOWN_ERRORS = 10


class TooManyErrors(RuntimeError):
    """More samples have failed, over all processes, than ``max_error_rate`` allows."""


class Ledger:
    """The records of one run, on one process.

    Attributes:
        records: Index of a request of this process → its record, after :meth:`collect`.
        everybody: The records of all processes' requests, after :meth:`collect`.
    """

    def __init__(self, journal: Journal | None, team: Team, options: AnswerOptions) -> None:
        self.records: dict[int, dict[str, Any]] = {}
        self.everybody: list[dict[str, Any]] = []
        self._journal, self._team, self._options = journal, team, options.run
        self._return_thinking = options.thinking.return_thinking
        self._finished: list[tuple[int, int, dict[str, Any]]] = []  # Owner, index of its request, record.

    @property
    def finished(self) -> int:
        """How many samples this process has finished, with those that the journal held."""
        return len(self._finished)

    def resume(self, index: int, record: Mapping[str, Any]) -> None:
        """Takes the journal's record of one of this process' requests."""
        text = joined(record["thinking"], record["answer"], self._return_thinking)
        self._finished.append((self._team.rank, index, {**record, "text": text}))

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
        self._finished.append((waiting.owner, waiting.sample.index, record))
        progress.add(record["tokens"]["output"])
        if error is not None:
            self._count_failure(error, progress.total)

    def collect(self, progress: Progress) -> None:
        """Hands every process the records of its own requests. Every process of the team has to call it."""
        shares = self._team.gather(self._finished, meanwhile=progress.draw)
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
