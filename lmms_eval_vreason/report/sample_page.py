"""One journal sample as a page: its frames and traces as a figure, the question, and the text coloured by entropy."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from lmms_eval_vreason.journal.files import FOLDER, samples_files, with_trace
from lmms_eval_vreason.report.figures import CHOSEN_FROM, COLOURS, SHIFT, STYLE, draw_updates
from lmms_eval_vreason.report.files import read_json_lines
from lmms_eval_vreason.report.journals import find_journals, trace_frame
from lmms_eval_vreason.report.render import as_data_url, render
from lmms_eval_vreason.report.runs import read_samples
from lmms_eval_vreason.report.scores import RIGHT
from lmms_eval_vreason.report.statistics import Array

_THUMBNAILS = 6


@dataclass(frozen=True)
class Verdict:
    """What the samples file says of a question: its gold answer, and the score that the answer got."""

    gold: str
    score: float

    def __str__(self) -> str:
        graded = f", score {self.score:.2f}" if self.score not in (0, 1) else ""
        return f"gold: {_short(self.gold)} · {'right' if self.score >= RIGHT else 'wrong'}{graded}"


def find_sample(argument: str, notices: list[str]) -> dict[str, Any]:
    """The journal line that ``RUN[#TASK/DOC]`` names, with its trace; without a name the first steered sample.

    Args:
        argument: an output folder of lmms-eval with a journal, a journal folder or a journal file.
        notices: receives one sentence a finding about the files.

    Raises:
        ValueError: there is no journal, or no such sample with a trace; the message says what there is.
    """
    path, name = _place(argument)
    lines = ((file, line) for file in _journals(path) for line in read_json_lines(file, notices))
    traced = {f"{own['task']}/{own['doc_id']}": (file, own) for file, own in lines if own.get("trace")}
    for known, (file, line) in traced.items():
        if name == known or (not name and line["trace"]["updates"]):
            found = with_trace(file, line)
            if "entropy" not in found["trace"]:
                raise ValueError(f"{file}: the trace of {known} is not in the traces' file beside it")
            return found
    raise ValueError(
        f"{path}: no {'traced sample ' + name if name else 'steered sample'}; "
        f"there are {len(traced)} with a trace" + (f", as {path}#{next(iter(traced))}" if traced else "")
    )


def _place(argument: str) -> tuple[Path, str]:
    place, _, name = argument.partition("#")
    return Path(place).expanduser(), name


def _journals(path: Path) -> list[Path]:
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    files = [path] if path.suffix == ".jsonl" and "_samples_" not in path.name else find_journals(path)
    if not (files := files or samples_files(path)):
        raise ValueError(f"{path} has no {FOLDER}: only runs of qwen2_5_vl_vreason leave traces")
    return files


def find_verdict(argument: str, record: Mapping[str, Any], notices: list[str]) -> Verdict | None:
    """Gold and score of a journal's sample, from the samples file of the same run; None where there is none.

    Args:
        argument: as for :func:`find_sample`.
        record: the sample's journal line.
        notices: says why a samples file that exists cannot be used.
    """
    path, _ = _place(argument)
    # Samples files lie beside the journal's folder.
    path = next((folder.parent for folder in (path, path.parent) if folder.name == FOLDER), path)
    try:
        samples, _ = read_samples(path, record["task"], [], [])
    except ValueError as error:
        if "different model arguments" in str(error):
            notices.append(f"gold and score are not shown: {error}")
        return None
    own = samples[samples["doc_id"] == record["doc_id"]]
    return None if own.empty else Verdict(own["target"].iat[0], own["score"].iat[0])


def sample_page(record: Mapping[str, Any], title: str, image: Path) -> str:
    """The page of one sample, self-contained.

    Args:
        record: a journal line of kind ``sample`` with its trace.
        title: from :func:`sample_title`.
        image: its figure's PNG file.
    """
    entropy = _trace(record)["chosen_from"]
    tokens = list(zip(record["trace"]["tokens"], entropy, strict=False))
    about = {"prompt": record["prompt"].strip(), "tokens": tokens, "highest": max(entropy.max(), 1e-3)}
    return render("sample.html", title=title, image=as_data_url(image), **about)


def sample_title(record: Mapping[str, Any], verdict: Verdict | None = None) -> str:
    """Which sample it is, its answer, and what the samples file says of it."""
    parts = [f"{record['task']}, document {record['doc_id']}", f"answer: {_short(record['answer'])}"]
    return " · ".join([*parts, *([str(verdict)] if verdict else [])])


def _trace(record: Mapping[str, Any]) -> pd.DataFrame:
    """The sample's trace, indexed by token (from 1)."""
    return trace_frame({0: record["trace"]}).reset_index("sample", drop=True)


def _short(text: str) -> str:
    return textwrap.shorten(text, 40, placeholder="…") or "none"


def sample_figure(record: Mapping[str, Any], title: str) -> Figure:
    """The sample's frames, and its entropy, α, ΔH and shift against the generated token."""
    with style.context(STYLE):
        figure = Figure(figsize=(8.4, 6.6), layout="constrained")
        figure.suptitle(title, fontsize=10)
        frames, *panels = figure.subplots(5, height_ratios=(1.0, 1.7, 0.9, 1.0, 1.0))
        _draw_frames(frames, record["media"])
        _draw_traces(panels, _trace(record))
        reason = f" (not steered: {record['trace']['note']})" if record["trace"]["note"] else ""
        panels[-1].set_xlabel(f"Generated token{reason}")
        figure.align_ylabels()
    return figure


def _draw_frames(axes: Axes, media: Sequence[str]) -> None:
    axes.axis("off")
    words = "no video"
    if media:
        try:
            frames = thumbnails(Path(media[0]), _THUMBNAILS)
        except (OSError, RuntimeError) as error:
            words = f"frames of {Path(media[0]).name} cannot be read: {_short(str(error))}"
        else:
            gap = np.full_like(frames[0][:, : frames[0].shape[1] // 20], 255)
            axes.imshow(np.hstack([part for frame in frames for part in (frame, gap)]))
            return
    axes.text(0.5, 0.5, words, ha="center", transform=axes.transAxes, fontsize=8)


def thumbnails(path: Path, count: int) -> list[Array]:
    """``count`` frames evenly over a video (or the one image), each (height, width, 3) uint8.

    Raises:
        OSError: the file is missing or unreadable.
    """
    if not path.exists():
        raise FileNotFoundError("no such file")
    if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"):
        return [np.asarray(Image.open(path).convert("RGB"))]
    import decord  # reading frames is only needed here, and decord is slow to load

    reader = decord.VideoReader(str(path))
    indices = np.linspace(0, len(reader) - 1, count).round().astype(int)
    return list(reader.get_batch(indices).asnumpy())


def _draw_traces(panels: Sequence[Axes], trace: pd.DataFrame) -> None:
    entropy, signs, changes, shift = panels
    lines = {"chosen_from": ("-", COLOURS[5]), "ema": ("--", COLOURS[0]), "peak": (":", COLOURS[1])}
    names = ("entropy", "moving average (before updates)", "its peak")
    for (column, (line, colour)), name in zip(lines.items(), names, strict=True):
        entropy.plot(trace[column], line, color=colour, label=name)
    entropy.set_ylabel(CHOSEN_FROM)
    entropy.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0, ncols=3, fontsize=7)
    draw_updates(signs, changes, trace)
    shift.plot(trace["shift"], color=COLOURS[2])
    shift.set_ylabel(SHIFT)
    shift.set_ylim(bottom=0)
    for axes in panels:
        axes.set_xlim(0.5, len(trace) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.label_outer()
