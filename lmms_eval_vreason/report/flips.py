"""Flips: the questions that one run gets right and the other wrong, with what both wrote."""

from collections.abc import Sequence
from typing import Any

from lmms_eval_vreason.report.render import render
from lmms_eval_vreason.report.runs import KEY, RunResults
from lmms_eval_vreason.report.scores import RIGHT

Flip = dict[str, Any]  # benchmark, task, doc_id, prompt, target, gained, and each side's label, right, answer, response


def find_flips(first: RunResults, second: RunResults) -> list[Flip]:
    """Questions that one run gets right and the other wrong, those that the second gains first.

    Raises:
        ValueError: the runs have no sample in common.
    """
    frames = [run.samples.set_index(KEY) for run in (first, second)]
    both = frames[0].index.intersection(frames[1].index)
    if both.empty:
        raise ValueError(f"{first.label} and {second.label} have no sample in common")
    right = [frame.loc[both, "score"] >= RIGHT for frame in frames]
    flips = []
    for key in both[right[0] != right[1]]:
        question, gained = frames[0].loc[key], bool(right[1][key])
        sides = [
            {"label": run.label, "right": won, **frame.loc[key, ["answer", "response"]]}
            for run, frame, won in zip((first, second), frames, (not gained, gained), strict=True)
        ]
        about = dict(zip(("benchmark", "part", "doc_id"), key, strict=True), gained=gained, sides=sides)
        flips.append({**about, **question[["task", "prompt", "target"]]})
    return sorted(flips, key=lambda flip: (not flip["gained"], flip["benchmark"], flip["task"], flip["doc_id"]))


def summary(flips: Sequence[Flip], labels: tuple[str, str]) -> str:
    """One line: how many questions each run gains."""
    gained = sum(flip["gained"] for flip in flips)
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
