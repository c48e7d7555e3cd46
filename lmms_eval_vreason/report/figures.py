"""The report's figures, by matplotlib. Colours are Okabe and Ito's, and line styles differ too, for print."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lmms_eval_vreason.report import journals
from lmms_eval_vreason.report.compare import MEAN, MEAN_WITH_MRA, Comparison
from lmms_eval_vreason.report.files import write_files

# Okabe and Ito (2008), without yellow, which vanishes on white paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
_MARKERS = "osD^vPX"
_PUBLISHED_MARKERS = "*ph8"
_LEGEND_CHARACTERS = 84  # of 9 points on 6.5 inches
STYLE = "lmms_eval_vreason.report.figures"  # figures.mplstyle
# (index of the run's label, label) → its journal's samples with traces.
Traced = Mapping[tuple[int, str], pa.Table]


def report_figures(comparison: Comparison) -> dict[str, Figure]:
    """Name → figure, of those that the runs have the data for."""
    traced = _traced(comparison)
    steered = {key: table for key, table in traced.items() if journals.trace_arrays(table, "shift")[0].any()}
    made: dict[str, Figure | None] = {}
    with style.context(STYLE):
        made["differences"], made["efficiency"] = differences(comparison), efficiency(comparison)
        if traced:
            made["entropy"] = curves(traced, {"entropy": "Entropy (nats)", "ema": "Moving average (nats)"})
            made["peak"] = peak(traced)
        if steered:
            made |= {"shift": curves(steered, {"shift": "‖ΔV‖ / ‖V‖"}), "steps": updates(steered)}
    return {name: figure for name, figure in made.items() if figure is not None}


def _traced(comparison: Comparison) -> Traced:
    """The labels' journals with at least one trace, seeds joined."""
    traced = {}
    for index, group in enumerate(comparison.groups):
        tables = [journals.with_arrays(run.journal) for run in group.runs if run.journal is not None]
        if sum(map(len, tables)):
            traced[index, group.name] = pa.concat_tables(tables)
    return traced


def _figure(height: float) -> Figure:
    return Figure(figsize=(6.5, height), layout="constrained")


def _style(index: int) -> dict[str, Any]:
    """Colour and marker of the index-th run."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": _MARKERS[index % len(_MARKERS)]}


def _legend(figure: Figure, labels: Sequence[str], loc: Any = "outside upper center") -> None:
    """A legend in as many columns as fit the figure's width."""
    columns = max(1, min(len(labels), _LEGEND_CHARACTERS // (max(map(len, labels)) + 8)))
    figure.legend(loc=loc, ncols=columns)


def _widen(axes: Axes, axis: str, least: float) -> None:
    """Gives an axis a span of at least ``least`` around its middle, so that equal values don't fill it with noise."""
    low, high = getattr(axes, f"get_{axis}lim")()
    if high - low < least:
        middle = (low + high) / 2
        getattr(axes, f"set_{axis}lim")(middle - least / 2, middle + least / 2)


def differences(comparison: Comparison) -> Figure | None:
    """Each run's difference to the first, with its 95% interval, by benchmark."""
    table = comparison.table
    rows = table[table["difference"].notna() & table["unit"].eq("%")]
    if rows.empty:
        return None
    names = [name for name in table["benchmark"].unique() if name in set(rows["benchmark"])]
    labels = [group.name for group in comparison.groups[1:]]
    figure = _figure(0.9 + len(names) * (0.22 + 0.16 * len(labels)))
    axes = figure.add_subplot()
    for index, label in enumerate(labels, start=1):
        own = rows[rows["label"] == label]
        offset = (index - (len(labels) + 1) / 2) * 0.7 / max(len(labels), 1)
        y = np.array([names.index(name) for name in own["benchmark"]]) + offset
        reach = np.abs(np.vstack([own["difference"] - own["low"], own["high"] - own["difference"]]))
        axes.errorbar(own["difference"], y, xerr=reach, linestyle="none", ms=4.5, capsize=2.5, label=label,
                      **_style(index))  # fmt: skip
        for place, x, changed in zip(y, own["difference"], own["changed"].where(own["low"].isna()), strict=True):
            if not np.isnan(changed):
                note = "no interval" if changed else "no sample's score differs: no interval"
                axes.annotate(note, (x, place), (6, 0), textcoords="offset points", va="center", fontsize=7)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    _widen(axes, "x", 2.0)
    first = comparison.groups[0].name
    axes.set(ylim=(len(names) - 0.4, -0.6), xlabel=f"Difference to {first}, points (95% interval)")
    _legend(figure, labels)
    return figure


def efficiency(comparison: Comparison) -> Figure | None:
    """Mean score against mean output tokens."""
    table = comparison.table
    means, over = table[table["benchmark"].eq(MEAN)], "mean over benchmarks"
    if means.empty:
        means = table[~table["benchmark"].isin([MEAN, MEAN_WITH_MRA])]
        if means["benchmark"].nunique() != 1:
            return None
        over = str(means["benchmark"].iat[0])
    means = means[means["output_tokens"].notna()]
    if means.empty:
        return None
    order: dict[Any, int] = {group.name: index for index, group in enumerate(comparison.groups)}
    figure = _figure(3.5 + 0.14 * len(means))
    axes = figure.add_subplot()
    names: list[str] = []
    places: dict[tuple[float, float], list[str]] = {}
    published = iter(_PUBLISHED_MARKERS * len(means))
    for row in means.to_dict("records"):
        drawn = {"marker": next(published), "color": "#777777"} if row["published"] else _style(order[row["label"]])
        names.append(f"{row['label']} †" if row["published"] else row["label"])
        same = places.setdefault((round(row["output_tokens"], 3), round(row["score"], 3)), [])
        # Markers on one spot stand around each other.
        axes.errorbar(row["output_tokens"], row["score"], yerr=row["se"], linestyle="none", ms=7 + 5 * len(same),
                      mfc="none", mew=1.4, capsize=3, label=names[-1], **drawn)  # fmt: skip
        same.append(names[-1])
    for place, same in places.items():
        if len(same) > 1:
            axes.annotate(", ".join(same) + ": equal", place, (12, 8), textcoords="offset points", fontsize=8)
    axes.set(xlabel="Output tokens a sample", ylabel=f"Score, {over} ± SE")
    axes.margins(x=0.15, y=0.15)
    _widen(axes, "x", 4.0)
    _legend(figure, names, loc="outside lower center")
    return figure


def curves(traced: Traced, panels: Mapping[str, str]) -> Figure:
    """Means of trace columns against the token index, with 95% bands.

    Args:
        panels: the trace's column → title of its panel.
    """
    figure = _figure(0.4 + 2.4 * len(panels))
    all_axes = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axes, (column, title) in zip(all_axes, panels.items(), strict=True):
        for (index, label), table in traced.items():
            curve, colour = journals.curve(table, column), COLOURS[index % len(COLOURS)]
            x, reach = np.arange(1, len(curve.mean) + 1), 1.96 * curve.error
            axes.plot(x, curve.mean, color=colour, linestyle=_LINES[index % len(_LINES)], linewidth=1.4,
                      label=label if axes is all_axes[0] else None)  # fmt: skip
            axes.fill_between(x, curve.mean - reach, curve.mean + reach, color=colour, alpha=0.18, linewidth=0)
        axes.set_ylabel(title)
        axes.set_ylim(bottom=0)
    axes.set_xlabel("Generated token (while 5% of the samples last; band: 95% interval of the mean)")
    _legend(figure, [label for _, label in traced])
    return figure


def peaks(table: pa.Table) -> pd.DataFrame:
    """One row a traced sample: ``position`` (token from 1) and ``height`` (nats) of its EMA's peak."""
    values, tokens, rows = journals.trace_arrays(table, "ema")
    frame = pd.DataFrame({"row": rows, "position": tokens + 1, "height": values}).dropna()
    return frame.loc[frame.groupby("row")["height"].idxmax(), ["position", "height"]]


def peak(traced: Traced) -> Figure:
    """Where the EMA peaks and how high: a box a run (median, quartiles, 5 to 95%)."""
    found = {key: peaks(table) for key, table in traced.items()}
    highest = max(frame["height"].max() for frame in found.values())
    figure = _figure(1.3 + 0.34 * len(traced))
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, column in ((left, "position"), (right, "height")):
        boxes = axes.boxplot([frame[column] for frame in found.values()], orientation="horizontal", whis=(5, 95),
                             showfliers=False, patch_artist=True, widths=0.6, manage_ticks=axes is left,
                             tick_labels=[label for _, label in found],
                             medianprops={"color": "black", "linewidth": 1.4})  # fmt: skip
        for box, (index, _) in zip(boxes["boxes"], found, strict=True):
            box.set(facecolor=_style(index)["color"], alpha=0.55)
        _widen(axes, "x", 4.0 if axes is left else 0.05 * highest)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=axes is left))
    left.set(ylim=(len(found) + 0.6, 0.4), xlabel="Token at which the EMA peaks")
    right.set_xlabel("Height of the peak (nats)")
    return figure


def updates(traced: Traced) -> Figure | None:
    """α over time and ΔH of one sample a steered run: the sample with the median number of updates."""
    chosen = {}
    for (_, label), table in traced.items():
        counts = journals.sample_frame(table)["updates"].fillna(0).sort_values(kind="stable")
        steered = counts.index[counts > 0]
        if len(steered):
            chosen[label] = table.slice(int(steered[len(steered) // 2]), 1).to_pylist()[0]
    if not chosen:
        return None
    figure = _figure(0.6 + 2.6 * len(chosen))
    for part, (label, record) in zip(
        figure.subfigures(len(chosen), 1, squeeze=False)[:, 0], chosen.items(), strict=True
    ):
        part.suptitle(f"{label}: {record['task']}, document {record['doc_id']}", fontsize=9)
        upper, lower = part.subplots(2, 1, sharex=True)
        draw_updates(upper, lower, record["trace"])
        lower.set_xlabel("Generated token")
        lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def draw_updates(signs: Axes, changes: Axes, trace: Mapping[str, Any]) -> None:
    """Draws a sample's updates.

    Args:
        signs: gets α: +1 explores (raises the entropy), -1 exploits (lowers it).
        changes: gets ΔH, nats.
        trace: the trace of a journal line.
    """
    alpha, change = (np.array(trace[name], dtype=float) for name in ("alpha", "entropy_change"))
    kinds = ((1, COLOURS[1], "^", "α = +1, explore"), (-1, COLOURS[0], "v", "α = −1, exploit"))
    for sign, colour, marker, label in kinds:
        at = np.flatnonzero(np.sign(alpha) == sign)
        signs.plot(at + 1, alpha[at], marker, color=colour, ms=4, label=label)
        changes.vlines(at + 1, 0, change[at], color=colour, linewidth=1.2)
        changes.plot(at + 1, change[at], "o", color=colour, ms=8**0.5)
    signs.set(ylim=(-1.6, 1.6), yticks=(-1, 0, 1), ylabel="α")
    signs.legend(loc="center right", fontsize=7, frameon=True, framealpha=0.8, edgecolor="none")
    changes.axhline(0, color="black", linewidth=0.6)
    changes.set_ylabel("ΔH (nats)")
    changes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=False)


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file."""
    return _rendered(figure, "png")


def save(figure: Figure, prefix: Path, image: bytes | None = None) -> list[Path]:
    """Writes ``PREFIX.png`` (``image`` where it has been rendered before) and ``PREFIX.svg``."""
    return write_files(prefix, {".png": image or png(figure), ".svg": _rendered(figure, "svg")})


def _rendered(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    with style.context(STYLE):
        figure.savefig(buffer, format=kind)
    return buffer.getvalue()
