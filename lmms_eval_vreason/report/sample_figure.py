"""One journal sample as a figure: frames, question, the text coloured by entropy, the answer, and the traces."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image

from lmms_eval_vreason.journal.files import FOLDER, samples_files, with_trace
from lmms_eval_vreason.report.figures import COLOURS, STYLE, draw_updates
from lmms_eval_vreason.report.files import find_samples, read_json, read_json_lines
from lmms_eval_vreason.report.journals import find_journals
from lmms_eval_vreason.report.runs import metric_names
from lmms_eval_vreason.report.scores import RIGHT, score_of
from lmms_eval_vreason.report.statistics import Array

_COLUMNS = 112  # characters a line of the coloured text
_WIDTH, _LEFT, _INNER = 8.4, 0.9, 7.3  # inches: the figure, its left margin, what is drawn
_FONT_SIZE = _INNER * 72 / _COLUMNS / 0.602  # points at which DejaVu Sans Mono fills a line
_LINE = 0.165  # inches a line
_TOP, _GAP, _BOTTOM = 0.5, 0.28, 0.53
_THUMBNAILS = 6
_QUESTION_LINES = 14
# White to a blue on which black text stays legible; its lightness alone carries the value, so it prints in grey.
_HEAT = LinearSegmentedColormap.from_list("entropy", ["#ffffff", "#56B4E9"])


Piece = tuple[int, int, int, str]  # token index, column, line, text


@dataclass(frozen=True)
class Verdict:
    """What the samples file says of a question: its gold answer, and the score that the answer got."""

    gold: str
    score: float

    def __str__(self) -> str:
        graded = f", score {self.score:.2f}" if self.score not in (0, 1) else ""
        return f"gold: {_short(self.gold)} · {'right' if self.score >= RIGHT else 'wrong'}{graded}"


def find_sample(argument: str, notices: list[str]) -> dict[str, Any]:
    """The journal line that ``RUN[#TASK/DOC]`` names; without a name the first steered sample.

    Args:
        argument: an output folder of lmms-eval with a journal, a journal folder or a journal file.
        notices: receives one sentence a finding about the files.

    Raises:
        ValueError: there is no journal, or no such sample with a trace; the message says what there is.
    """
    path, name = _place(argument)
    found, known = None, []
    for file in _journals(path):
        for record in read_json_lines(file, notices):
            if record.get("kind") == "sample" and record.get("trace"):
                known.append(f"{record['task']}/{record['doc_id']}")
                if name == known[-1] or (not name and found is None and record["trace"]["updates"]):
                    found = with_trace(file, record)
    if found is not None:
        return found
    raise ValueError(
        f"{path}: no {'traced sample ' + name if name else 'steered sample'}; "
        f"there are {len(known)} with a trace" + (f", as {path}#{known[0]}" if known else "")
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
    folders = [path, *path.parents][:3]
    if FOLDER in (folder.name for folder in folders):  # samples files lie beside the journal
        path = next(folder for folder in folders if folder.name == FOLDER).parent
    try:
        (file,) = find_samples(path, [], record["task"])
    except ValueError as error:
        if "different model arguments" in str(error):
            notices.append(f"gold and score are not shown: {error}")
        return None
    metrics = metric_names(read_json(file.results), file.task) if file.results else []
    for sample in reversed(list(read_json_lines(file.path, []))):  # the last of a doc_id counts
        if sample.get("doc_id") == record["doc_id"] and (scored := score_of(sample, file.task, file.task, metrics)):
            return Verdict(str(sample.get("target", "unknown")), scored[2])
    return None


def sample_figure(record: Mapping[str, Any], verdict: Verdict | None = None) -> Figure:
    """Draws one sample.

    Args:
        record: a journal line of kind ``sample`` with a trace.
        verdict: what the samples file says of it.
    """
    trace, prompt = record["trace"], record["prompt"].strip()
    question = [part for line in prompt.splitlines() for part in textwrap.wrap(line, _COLUMNS) or [""]]
    if len(question) > _QUESTION_LINES:
        question[_QUESTION_LINES - 1 :] = ["…"]
    placed, lines = flow(trace["tokens"], _COLUMNS)
    heights = [1.0, _LINE * len(question), 0.12, _LINE * lines, 1.7, 0.9, 1.0, 1.0]
    height = _TOP + sum(heights) + _GAP * (len(heights) - 1) + _BOTTOM
    inches = {"left": _LEFT / _WIDTH, "right": (_LEFT + _INNER) / _WIDTH, "top": 1 - _TOP / height,
              "bottom": _BOTTOM / height, "hspace": _GAP * len(heights) / sum(heights)}  # fmt: skip
    with style.context(STYLE):
        figure = Figure(figsize=(_WIDTH, height))
        title = f"{record['task']}, document {record['doc_id']} · answer: {_short(record['answer'])}"
        title += f" · {verdict}" if verdict else ""
        figure.text(_LEFT / _WIDTH, 1 - 0.3 / height, title, fontsize=10)
        axes = figure.subplots(len(heights), height_ratios=heights, gridspec_kw=inches)
        for one in axes[:4]:
            one.axis("off")
        _draw_frames(axes[0], record["media"])
        axes[1].text(0, 1, "\n".join(question), va="top", transform=axes[1].transAxes, fontsize=7.5,
                     family="monospace", linespacing=1.3)  # fmt: skip
        scale = Normalize(0, max(float(np.nanmax(np.array(trace["entropy"], dtype=float), initial=0)), 1e-3))
        _draw_key(axes[2], scale)
        _draw_text(axes[3], placed, trace["entropy"], scale)
        axes[3].set(xlim=(0, _COLUMNS), ylim=(lines, 0))
        _draw_traces(axes[4:], trace)
    return figure


def _draw_key(axes: Axes, scale: Normalize) -> None:
    """The colour key, a strip over the text that it explains."""
    strip = axes.inset_axes((0, 0, 0.25, 1))
    axes.figure.colorbar(ScalarMappable(scale, _HEAT), cax=strip, orientation="horizontal")
    strip.tick_params(labelsize=7)
    axes.text(0.27, 0.5, "entropy of each generated token (nats); ⏎ is a line's end", fontsize=7.5, va="center",
              transform=axes.transAxes)  # fmt: skip


def _short(text: str, width: int = 40) -> str:
    line = " ".join(text.split())
    return (line if len(line) <= width else line[: width - 1] + "…") or "none"


def flow(tokens: Sequence[str], columns: int) -> tuple[list[Piece], int]:
    """Places token pieces on lines of a fixed width.

    Returns:
        (token index, column, line, text) of each piece, longer tokens cut, and the number of lines.
    """
    placed: list[Piece] = []
    column, line = 0, 0
    for index, token in enumerate(tokens):
        shown = token.replace("\n", "⏎").replace("\t", " ")
        for start in range(0, len(shown), columns):
            part = shown[start : start + columns]
            if column and column + len(part) > columns:
                column, line = 0, line + 1
            placed.append((index, column, line, part))
            column += len(part)
        # A run of empty lines stays on one line: only text after a line's end begins a new one.
        following = tokens[index + 1] if index + 1 < len(tokens) else "\n"
        if token.endswith("\n") and following.strip("\n"):
            column, line = 0, line + 1
    return placed, line + 1


def _draw_frames(axes: Axes, media: Sequence[str]) -> None:
    words = "no video"
    if media:
        try:
            frames = thumbnails(Path(media[0]), _THUMBNAILS)
        except (OSError, RuntimeError) as error:
            words = f"frames of {Path(media[0]).name} cannot be read: {_short(str(error))}"
        else:
            gap = np.full_like(frames[0][:, : frames[0].shape[1] // 20], 255)
            axes.imshow(np.hstack([part for frame in frames for part in (frame, gap)]))
            axes.set_anchor("W")
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


def _draw_text(axes: Axes, placed: Sequence[Piece], entropy: Sequence[float | None], scale: Normalize) -> None:
    for index, column, line, text in placed:
        value = entropy[index] if index < len(entropy) else None
        if value is not None:
            axes.add_patch(Rectangle((column, line), len(text), 0.92, color=_HEAT(scale(value)), linewidth=0))
        axes.text(column, line + 0.72, text, fontsize=_FONT_SIZE, family="monospace")


def _draw_traces(axes: Sequence[Axes], trace: Mapping[str, Any]) -> None:
    x = np.arange(1, len(trace["entropy"]) + 1)
    curves = (("entropy", "entropy", "-", 0.9), ("ema", "moving average", "--", 1.6), ("peak", "its peak", ":", 1.4))
    for (name, label, line, width), colour in zip(curves, (COLOURS[5], COLOURS[0], COLOURS[1]), strict=True):
        axes[0].plot(x, np.array(trace[name], dtype=float), line, color=colour, linewidth=width, label=label)
    axes[0].set_ylabel("nats")
    axes[0].legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0, ncols=3, fontsize=7)
    draw_updates(axes[1], axes[2], trace)
    axes[3].plot(x, np.array(trace["shift"], dtype=float), color=COLOURS[2])
    reason = f" (not steered: {trace['note']})" if trace["note"] else ""
    axes[3].set(ylabel="‖ΔV‖ / ‖V‖", xlabel=f"Generated token{reason}")
    axes[3].set_ylim(bottom=0)
    for one in axes:
        one.set_xlim(0.5, len(x) + 0.5)
        one.yaxis.set_label_coords(-0.085, 0.5)
        one.xaxis.set_major_locator(MaxNLocator(integer=True))
        one.label_outer()
