"""One call of ``generate_until``: samples → plan → batches → outcomes → records.

The journal answers what an earlier run has finished. The processes share the rest, in an order that keeps questions on
one video together; videos are read ahead, batches are answered, and each record is written before the next batch. A
fault stays with its sample.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import chain
from typing import Any

from loguru import logger

from lmms_eval_vreason.journal.files import JournalError, digest
from lmms_eval_vreason.journal.writer import Journal
from lmms_eval_vreason.media.media import MediaError
from lmms_eval_vreason.run.answers import Answers
from lmms_eval_vreason.run.batch_size import BatchSize
from lmms_eval_vreason.run.batches import batches, read
from lmms_eval_vreason.run.generation import Generator
from lmms_eval_vreason.run.options import AnswerOptions
from lmms_eval_vreason.run.plan import make_plan, share_out
from lmms_eval_vreason.run.processes import PeerStopped, Team
from lmms_eval_vreason.run.progress import Progress
from lmms_eval_vreason.run.records import Ledger
from lmms_eval_vreason.run.samples import Sample


class Run:
    """Answers lists of samples, together with the other processes of its team.

    Attributes:
        ledger: The records, as they come.
    """

    def __init__(
        self, generator: Generator, options: AnswerOptions, journal: Journal | None, size: BatchSize, team: Team
    ) -> None:
        self.generator, self.options, self.journal, self.size, self.team = generator, options, journal, size, team
        self.ledger = Ledger(journal, team, options)

    def answer(self, samples: Sequence[Sample], settings: Mapping[str, Any]) -> None:
        """Fills ``ledger`` for all samples. Every process of the team has to call it.

        Args:
            settings: What besides a sample itself changes its answer.

        Raises:
            TooManyErrors: More than ``max_error_rate`` of the samples failed (at least one failure is tolerated).
            PeerStopped: Another process has failed or is gone.
        """
        try:
            if self.journal is not None:
                self.journal.note("model", self.generator.in_force())
            self._answer(samples, digest(dict(settings)))
        except BaseException as error:
            if not isinstance(error, PeerStopped):
                self.team.stop(f"{type(error).__name__}: {error}")
            raise
        finally:
            self.generator.prefixes.expect((), 0)  # Frees what is held.

    def stopped(self, error: BaseException) -> str:
        """A line for the user when ``error`` has ended the run; empty without a journal."""
        if self.journal is None:
            return ""
        kept = f"stopped; {len(self.ledger.finished)} finished samples are in {self.journal.folder}"
        # Settings that are refused are refused again; a file, a disk or a device can be mended.
        refused = isinstance(error, ValueError) and not isinstance(error, MediaError | JournalError)
        return kept if refused else f"{kept}. Run the same command again to go on from there"

    def _answer(self, samples: Sequence[Sample], settings: str) -> None:
        plan = make_plan(samples, self.journal, settings, self.team.rank, self.options.run.oom)
        for index, record in plan.finished.items():
            self.ledger.resume(index, record)
        alone = self.team.size == 1 and self.size.now == 1 and not self.size.auto
        # Lengths order the samples of several processes or batches; to know them, every file is opened.
        rule = self.generator.setup.processor.rule
        schedule = share_out(plan, self.team, None if alone else self.options.video, rule)
        if self.team.rank == 0 and (line := schedule.resume_line()):
            logger.info(line)
        with closing(Progress(self.team, schedule.total, schedule.finished)) as progress:
            groups = [*schedule.own, *schedule.shared]
            samples = [waiting.sample for group in groups for waiting in group]
            self.generator.prefixes.expect(samples, self.options.run.shared_prefix)
            answers = Answers(self.generator, self.size, self.options.run.oom)
            candidates = chain(chain.from_iterable(schedule.own), self.team.candidates(schedule.shared))
            questions = read(candidates, self.team, self.options.video, self.size, rule)
            for batch in batches(questions, self.size, rule):
                for outcome in answers.to(batch):
                    self.ledger.add(outcome, progress)
            self.ledger.collect(progress)
