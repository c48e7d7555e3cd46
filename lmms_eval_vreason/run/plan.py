"""What a run has to do: the answers that the journal holds, and the order in which the other samples are answered."""

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from lmms_eval_vreason.journal.writer import Journal
from lmms_eval_vreason.media.frames import estimated_tokens
from lmms_eval_vreason.media.media import Media
from lmms_eval_vreason.media.options import VideoOptions
from lmms_eval_vreason.media.rule import QWEN2, FrameRule
from lmms_eval_vreason.run.processes import Team
from lmms_eval_vreason.run.records import sample_key, who
from lmms_eval_vreason.run.samples import Sample, Waiting

# An estimate that only has to order prompts.
_BYTES_A_TOKEN = 4
_READERS = 8

Group = list[Waiting]


@dataclass(frozen=True)
class Plan:
    """The samples of one process, as its journal leaves them.

    Attributes:
        finished: Index of a request → its record in the journal.
        waiting: Samples to answer.
        dropped: Why an earlier record of a waiting sample is not its answer → how many.
    """

    finished: dict[int, dict[str, Any]]
    waiting: list[Waiting]
    dropped: Counter[str]


@dataclass(frozen=True)
class Schedule:
    """What all processes have to do, and the groups of samples that this one may answer.

    Attributes:
        own: Groups that only this process can answer, since their media are in its memory.
        shared: Groups that any process can answer, the same list in each process.
        total, finished: Samples of all processes, and those of them that the journal has answered.
        dropped: As in :class:`Plan`, over all processes.
    """

    own: list[Group]
    shared: list[Group]
    total: int
    finished: int
    dropped: Counter[str]

    def resume_line(self) -> str:
        """What was taken from the journal and what was not, for the user; empty if it held nothing of this run."""
        if not self.finished and not self.dropped:
            return ""
        left = self.total - self.finished
        line = f"{self.finished} of {self.total} answers taken from the journal, {left} to go"
        reasons = "; ".join(f"{count} {reason}" for reason, count in self.dropped.most_common())
        return f"{line} ({reasons})" if reasons else line


def make_plan(samples: Iterable[Sample], journal: Journal | None, settings: str, rank: int, oom: str) -> Plan:
    """Looks each sample up in the journal.

    Args:
        settings: Digest of what besides the sample itself changes its answer.
        rank: This process'.
        oom: As in :class:`~lmms_eval_vreason.run.options.RunOptions`. Answers given with Lite count only with ``lite``.
    """
    plan = Plan({}, [], Counter())
    for sample in samples:
        key = sample_key(sample, settings)
        record = journal.finished.get(key) if journal is not None else None
        of_lite = record is not None and bool(record.get("remark")) and oom != "lite"
        if record is not None and not of_lite:
            plan.finished[sample.index] = record
            continue
        plan.waiting.append(Waiting(sample, key, rank))
        if of_lite:
            plan.dropped["had been answered with oom=lite"] += 1
        elif journal is not None and (reason := journal.why_not(key, who(sample))):
            plan.dropped[reason] += 1
    return plan


def share_out(plan: Plan, team: Team, options: VideoOptions | None, rule: FrameRule = QWEN2) -> Schedule:
    """The processes' plans, put together. Every process of the team has to call it.

    Args:
        options: How videos are read, to estimate the prompts' lengths; None: their order does not matter.
    """
    waiting = plan.waiting
    if options is not None:
        lengths = prompt_lengths([w.sample for w in waiting], options, rule)
        waiting = [replace(w, length=length) for w, length in zip(waiting, lengths, strict=True)]
    # Media that a task holds in memory are not sent to other processes.
    movable = [w for w in waiting if w.sample.movable]
    fixed = [w for w in waiting if not w.sample.movable]
    shares = team.gather((len(waiting), len(plan.finished), plan.dropped, movable))
    left, finished, dropped, shared = zip(*shares, strict=True)
    total, everyone = sum(left) + sum(finished), [w for share in shared for w in share]
    return Schedule(grouped(fixed), grouped(everyone), total, sum(finished), sum(dropped, Counter()))


def prompt_lengths(samples: Sequence[Sample], options: VideoOptions, rule: FrameRule = QWEN2) -> list[int]:
    """Roughly how many tokens each prompt will have, from its text and the headers of its files."""
    media = list({item: None for sample in samples for item in sample.media if item.is_path})
    # Most of the time is spent waiting for files.
    with ThreadPoolExecutor(_READERS, thread_name_prefix="headers") as pool:
        counts = pool.map(lambda item: estimated_tokens(item, options, rule), media)
        tokens: dict[Media, int] = dict(zip(media, counts, strict=True))
    return [
        sum(tokens[item] for item in sample.media if item.is_path) + len(sample.prompt.encode()) // _BYTES_A_TOKEN
        for sample in samples
    ]


def grouped(waiting: Iterable[Waiting]) -> list[Group]:
    """The samples in the order in which they are answered, in groups that share their first medium and settings.

    Long prompts come first: whatever fits after them in memory has been shown to fit, and when several processes
    finish, steps are short. Within a group, questions on one clip stay together. The order depends on the samples
    alone.
    """
    by_group = sorted(waiting, key=_group)
    groups = [sorted(members, key=_place) for _, members in groupby(by_group, key=_group)]
    return sorted(groups, key=lambda group: (_group(group[0])[0], -max(w.length for w in group), _group(group[0])))


def _group(waiting: Waiting) -> tuple[str, str, int, int]:
    sample = waiting.sample
    first = sample.media[0] if sample.media else None
    if first is None or not first.is_path:
        # Nothing to share with others.
        return repr(sample.settings), "", waiting.owner, sample.index
    return repr(sample.settings), first.source, 0, 0


def _place(waiting: Waiting) -> tuple[str, int, int, int]:
    sample = waiting.sample
    return repr(sample.media) if sample.movable else "", -waiting.length, waiting.owner, sample.index
