"""Flips: the questions that one run gets right and the other wrong, with what both wrote."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmms_eval_vreason.report.files import find_samples, parse_run, read_json_lines
from lmms_eval_vreason.report.render import render
from lmms_eval_vreason.report.runs import KEY, RunResults
from lmms_eval_vreason.report.scores import RIGHT, answer_of, response_of


@dataclass(frozen=True)
class Side:
    """What one run made of a question."""

    label: str
    right: bool
    answer: str
    response: str

    @property
    def verdict(self) -> str:
        return "right" if self.right else "wrong"


@dataclass(frozen=True)
class Flip:
    """One question on which two runs differ."""

    benchmark: str
    task: str
    doc_id: int
    prompt: str
    target: str
    sides: tuple[Side, Side]

    @property
    def gained(self) -> bool:
        """Whether the second run is the one that is right."""
        return self.sides[1].right


def find_flips(first: tuple[str, RunResults], second: tuple[str, RunResults]) -> list[Flip]:
    """Questions that one run gets right and the other wrong, those that the second gains first.

    Args:
        first, second: the argument that named the run, and the run.

    Raises:
        ValueError: the runs have no sample in common.
    """
    frames = [run.samples.set_index(KEY) for _, run in (first, second)]
    both = frames[0].merge(frames[1], left_index=True, right_index=True, suffixes=("_0", "_1"))
    if both.empty:
        raise ValueError(f"{first[1].label} and {second[1].label} have no sample in common")
    differ = both[(both["score_0"] >= RIGHT) != (both["score_1"] >= RIGHT)].reset_index().to_dict("records")
    texts = [
        _samples(argument, {(row[f"task_{i}"], row["doc_id"]) for row in differ})
        for i, (argument, _) in enumerate((first, second))
    ]
    flips = []
    for row in differ:
        samples = [texts[i][row[f"task_{i}"], row["doc_id"]] for i in (0, 1)]
        one, other = (
            Side(run.label, row[f"score_{i}"] >= RIGHT, answer_of(samples[i]), response_of(samples[i]))
            for i, (_, run) in enumerate((first, second))
        )
        prompt, target = (str(samples[0].get(name, "")) for name in ("input", "target"))
        flips.append(Flip(row["row"], row["task_0"], int(row["doc_id"]), prompt, target, (one, other)))
    return sorted(flips, key=lambda flip: (not flip.gained, flip.benchmark, flip.task, flip.doc_id))


def _samples(argument: str, wanted: set[tuple[str, int]]) -> Mapping[tuple[str, int], Mapping[str, Any]]:
    """The whole lines of the wanted (task, doc_id); what is wrong with the files was said when they were first read."""
    _, path, pattern = parse_run(argument)
    return {
        (file.task, sample["doc_id"]): sample
        for file in find_samples(path, [], pattern)
        for sample in read_json_lines(file.path, [])
        if (file.task, sample.get("doc_id")) in wanted
    }


def summary(flips: Sequence[Flip], labels: tuple[str, str]) -> str:
    """One line: how many questions each run gains."""
    gained = sum(flip.gained for flip in flips)
    return (
        f"{len(flips)} questions differ: {labels[1]} is right and {labels[0]} wrong on {gained}, "
        f"the other way round on {len(flips) - gained}"
    )


def as_text(flips: Sequence[Flip]) -> str:
    """Each flip as a block of text."""
    return render("flips.txt", flips=flips)


def as_page(flips: Sequence[Flip], labels: tuple[str, str]) -> str:
    """All flips as one self-contained page, both chains side by side."""
    return render("flips.html", title=f"{labels[0]} against {labels[1]}", summary=summary(flips, labels), flips=flips)
