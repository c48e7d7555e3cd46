"""Flips: the questions that one run gets right and the other wrong, with what both wrote."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from lmms_eval_vreason.report.folders import find_samples, parse_run
from lmms_eval_vreason.report.page import page
from lmms_eval_vreason.report.reading import read_json_lines
from lmms_eval_vreason.report.runs import KEY, Run
from lmms_eval_vreason.report.scores import answer_of, response_of

RIGHT = 0.5  # scores from here on count as right: mean relative accuracy is a share


@dataclass(frozen=True)
class Side:
    """What one run made of a question."""

    label: str
    right: bool
    score: float
    answer: str
    response: str


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


def find_flips(first: tuple[str, Run], second: tuple[str, Run]) -> list[Flip]:
    """Questions that one run gets right and the other wrong, those that the second gains first.

    Args:
        first, second: the argument that named the run, and the run.

    Raises:
        ValueError: the runs have no sample in common.
    """
    frames = [run.samples.set_index(KEY) for _, run in (first, second)]
    common = frames[0].index.intersection(frames[1].index)
    if common.empty:
        raise ValueError(f"{first[1].label} and {second[1].label} have no sample in common")
    right = [frame.loc[common, "score"] >= RIGHT for frame in frames]
    differ = common[(right[0] != right[1]).to_numpy()]
    texts = [
        _texts(argument, {(frame.at[key, "task"], key[2]) for key in differ})
        for (argument, _), frame in zip((first, second), frames, strict=True)
    ]
    flips = []
    for key in differ:
        names = [frame.at[key, "task"] for frame in frames]
        samples = [text[name, key[2]] for text, name in zip(texts, names, strict=True)]
        sides = tuple(
            Side(run.label, bool(right[i].at[key]), float(frames[i].at[key, "score"]), answer_of(sample),
                 response_of(sample))
            for i, ((_, run), sample) in enumerate(zip((first, second), samples, strict=True))
        )  # fmt: skip
        prompt, target = str(samples[0].get("input", "")), str(samples[0].get("target", ""))
        flips.append(Flip(key[0], names[0], int(key[2]), prompt, target, sides))
    return sorted(flips, key=lambda flip: (not flip.gained, flip.benchmark, flip.task, flip.doc_id))


def _texts(argument: str, wanted: set[tuple[str, int]]) -> dict[tuple[str, int], dict[str, Any]]:
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


def as_text(flips: Sequence[Flip]) -> Iterator[str]:
    """Each flip as a block of text."""
    for flip in flips:
        lines = [
            f"── {flip.benchmark} · {flip.task} · document {flip.doc_id}",
            flip.prompt.strip(),
            f"gold: {flip.target}",
        ]
        for side in flip.sides:
            verdict = "right" if side.right else "wrong"
            lines += [f"── {side.label}: {verdict}, answered {side.answer or 'nothing'}", side.response.strip()]
        yield "\n".join(lines) + "\n"


def as_page(flips: Sequence[Flip], labels: tuple[str, str]) -> str:
    """All flips as one self-contained page, both chains side by side."""
    title = f"{labels[0]} against {labels[1]}"
    parts = [f"<h1>{escape(title)}</h1>", f"<p>{escape(summary(flips, labels))}</p>"]
    for flip in flips:
        parts.append(f"<h2>{escape(flip.benchmark)} · {escape(flip.task)} · document {flip.doc_id}</h2>")
        parts.append(f"<pre>{escape(flip.prompt.strip())}</pre><p>Gold: <b>{escape(flip.target)}</b></p>")
        parts.append('<div class="pair">' + "".join(map(_side, flip.sides)) + "</div>")
    return page(f"Flips: {title}", "\n".join(parts))


def _side(side: Side) -> str:
    verdict = "right" if side.right else "wrong"
    heading = f"{escape(side.label)}: {verdict}, answered <b>{escape(side.answer or 'nothing')}</b>"
    return f'<div class="{verdict}"><p>{heading}</p><pre>{escape(side.response.strip())}</pre></div>'
