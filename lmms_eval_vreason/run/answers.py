"""Batches → outcomes: a batch that fails is halved, down to the one sample whose fault it is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lmms_eval_vreason.run.batch_size import BatchSize, is_out_of_memory, release
from lmms_eval_vreason.run.batches import Question
from lmms_eval_vreason.run.generation import Completion, Generator

# The paper's Lite, for a sample that does not fit into memory otherwise.
_LITE_RATIO = 0.5
_LITE_REMARK = f"out of memory: answered with prune_ratio={_LITE_RATIO}"


@dataclass(frozen=True)
class Outcome:
    """What became of a question: a completion, with a remark on what was done differently for it, or an error."""

    question: Question
    completion: Completion | None = None
    error: BaseException | None = None
    remark: str = ""


class Answers:
    """Answers batches, and learns from them how large the next may be."""

    def __init__(self, generator: Generator, size: BatchSize, oom: str) -> None:
        """Args: ``oom``, as in :class:`~lmms_eval_vreason.run.options.RunOptions`."""
        self.generator, self.size, self.oom = generator, size, oom

    def to(self, batch: Sequence[Question]) -> Iterator[Outcome]:
        """An outcome for each question, in order."""
        if batch[0].error is not None:
            yield Outcome(batch[0], error=batch[0].error)
            return
        try:
            completions = self.generator.generate([q.waiting.sample for q in batch], [q.media for q in batch])
        except Exception as error:
            fault = error
        else:
            self.size.worked(len(batch))
            yield from map(Outcome, batch, completions)
            return
        release(fault)
        if is_out_of_memory(fault):
            self.size.ran_out(len(batch))
        if len(batch) == 1:
            yield self._last_try(batch[0], fault)
            return
        half = len(batch) // 2
        yield from self.to(batch[:half])
        yield from self.to(batch[half:])

    def _last_try(self, question: Question, fault: Exception) -> Outcome:
        """Answers with Lite what failed alone, if memory was short and the user allows it."""
        method = self.generator.method
        if self.oom != "lite" or method.prune_ratio or not is_out_of_memory(fault):
            return Outcome(question, error=fault)
        try:
            lite = replace(method, prune_ratio=_LITE_RATIO)
            (completion,) = self.generator.generate([question.waiting.sample], [question.media], lite)
        except Exception as error:
            return Outcome(question, error=error)
        return Outcome(question, completion, remark=_LITE_REMARK)
