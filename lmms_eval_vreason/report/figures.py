"""The report's figures, by matplotlib. Colours are Okabe and Ito's, and line styles differ too, for print."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lmms_eval_vreason.report import journals
from lmms_eval_vreason.report.compare import MEAN, MEAN_WITH_MRA, Comparison

# Okabe and Ito (2008), without yellow, which vanishes on white paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
MARKERS = "osD^vPX"
_PUBLISHED_MARKERS = "*ph8"
_LEGEND_CHARACTERS = 84  # of 9 points on 6.5 inches
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "savefig.dpi": 200,
    "text.parse_math": False,  # labels and texts are users' and models' own: a dollar sign is no formula
}


def style_of(index: int) -> dict:
    """Colour, line style and marker of the index-th run."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": LINES[index % len(LINES)],
        "marker": MARKERS[index % len(MARKERS)],
    }


def report_figures(comparison: Comparison) -> dict[str, Figure]:
    """Name → figure, of those that the runs have the data for."""
    with matplotlib.rc_context(STYLE):
        made = {"differences": differences(comparison), "efficiency": efficiency(comparison)}
        traced = _traced(comparison)
        if traced:
            made["entropy"] = entropy(traced)
            made["peak"] = peak(traced)
            made["shift"] = shift(traced)
            made["steps"] = due_steps(traced)
        return {name: figure for name, figure in made.items() if figure is not None}


def _traced(comparison: Comparison) -> dict[tuple[int, str], pa.Table]:
    """(index of the label, label) → its journals with at least one trace, seeds joined."""
    traced = {}
    for index, label in enumerate(comparison.labels):
        tables = [run.journal for run in label.runs if run.journal is not None]
        tables = [journals.with_arrays(table) for table in tables]
        table = pa.concat_tables(tables) if tables else None
        if table is not None and len(table):
            traced[index, label.name] = table
    return traced


def _legend(figure: Figure, labels: Sequence[str], loc: str = "outside upper center") -> None:
    """A legend in as many columns as fit the figure's width."""
    columns = max(1, min(len(labels), _LEGEND_CHARACTERS // (max(map(len, labels)) + 8)))
    figure.legend(loc=loc, ncols=columns)


def differences(comparison: Comparison) -> Figure | None:
    """Each run's difference to the first, with its 95% interval, by benchmark."""
    table = comparison.table
    if "difference" not in table or not table["difference"].notna().any():
        return None
    rows = table[table["difference"].notna() & table["unit"].eq("%")]
    if rows.empty:
        return None
    names = [name for name in table["benchmark"].unique() if name in set(rows["benchmark"])]
    labels = [label.name for label in comparison.labels[1:]]
    figure = Figure(figsize=(6.5, 0.9 + len(names) * (0.22 + 0.16 * len(labels))), layout="constrained")
    axes = figure.add_subplot()
    for index, label in enumerate(labels, start=1):
        own = rows[rows["label"] == label]
        offset = (index - (len(labels) + 1) / 2) * 0.7 / max(len(labels), 1)
        y = np.array([names.index(name) for name in own["benchmark"]]) + offset
        reach = np.abs(np.vstack([own["difference"] - own["low"], own["high"] - own["difference"]]))
        style = style_of(index)
        axes.errorbar(own["difference"], y, xerr=reach, fmt=style["marker"], color=style["color"], ms=4.5, capsize=2.5,
                      label=label)  # fmt: skip
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(f"Difference to {comparison.labels[0].name}, points (95% interval)")
    _legend(figure, labels)
    return figure


def efficiency(comparison: Comparison) -> Figure | None:
    """Mean score against mean output tokens."""
    table = comparison.table
    means = table[table["benchmark"].eq(MEAN)]
    over = "mean over benchmarks"
    if means.empty:
        rows = table[~table["benchmark"].isin([MEAN, MEAN_WITH_MRA])]
        if rows["benchmark"].nunique() != 1:
            return None
        means, over = rows, rows["benchmark"].iat[0]
    means = means[means["output_tokens"].notna()]
    if means.empty:
        return None
    order = {label.name: index for index, label in enumerate(comparison.labels)}
    published = list(means.loc[means["published"], "label"])
    figure = Figure(figsize=(6.5, 3.5 + 0.14 * len(means)), layout="constrained")
    axes = figure.add_subplot()
    names = []
    for row in means.to_dict("records"):
        names.append(f"{row['label']} †" if row["published"] else row["label"])
        if row["published"]:
            marker, colour = _PUBLISHED_MARKERS[published.index(row["label"]) % len(_PUBLISHED_MARKERS)], "#777777"
        else:
            style = style_of(order[row["label"]])
            marker, colour = style["marker"], style["color"]
        axes.errorbar(row["output_tokens"], row["score"], yerr=row["se"], fmt=marker, color=colour, ms=7, mfc="none",
                      mew=1.4, capsize=3, label=names[-1])  # fmt: skip
    axes.set_xlabel("Output tokens a sample")
    axes.set_ylabel(f"Score, {over} ± SE")
    axes.margins(x=0.15, y=0.15)
    _legend(figure, names, loc="outside lower center")
    return figure


def entropy(traced: Mapping[tuple[int, str], pa.Table]) -> Figure:
    """Mean entropy against the token index, raw and as EMA, with a 95% band."""
    figure = Figure(figsize=(6.5, 5.2), layout="constrained")
    for panel, (column, title) in enumerate((("entropy", "Entropy"), ("ema", "Entropy, moving average")), start=1):
        axes = figure.add_subplot(2, 1, panel)
        for (index, label), table in traced.items():
            _band(axes, journals.curve(table, column), index, label if panel == 1 else None)
        axes.set_ylabel(f"{title} (nats)")
    axes.set_xlabel("Generated token (while 5% of the samples last; band: 95% interval of the mean)")
    _legend(figure, [label for _, label in traced])
    return figure


def _band(axes, curve: journals.Curve, index: int, label: str | None) -> None:
    style = style_of(index)
    x, reach = np.arange(1, len(curve.mean) + 1), 1.96 * curve.error
    axes.plot(x, curve.mean, color=style["color"], linestyle=style["linestyle"], linewidth=1.4, label=label)
    axes.fill_between(x, curve.mean - reach, curve.mean + reach, color=style["color"], alpha=0.18, linewidth=0)


def peaks(table: pa.Table) -> pd.DataFrame:
    """One row a traced sample: ``position`` (token from 1) and ``height`` (nats) of its EMA's peak."""
    values, tokens, rows = journals.trace_arrays(table, "ema")
    frame = pd.DataFrame({"row": rows, "position": tokens + 1, "height": values}).dropna()
    return frame.loc[frame.groupby("row")["height"].idxmax(), ["position", "height"]]


def peak(traced: Mapping[tuple[int, str], pa.Table]) -> Figure:
    """Where the EMA peaks and how high: a box a run (median, quartiles, 5 to 95%)."""
    figure = Figure(figsize=(6.5, 1.3 + 0.34 * len(traced)), layout="constrained")
    found = {key: peaks(table) for key, table in traced.items()}
    titles = (("position", "Token at which the EMA peaks"), ("height", "Height of the peak (nats)"))
    for panel, (column, title) in enumerate(titles, start=1):
        axes = figure.add_subplot(1, 2, panel)
        boxes = axes.boxplot([frame[column] for frame in found.values()], orientation="horizontal", whis=(5, 95),
                             showfliers=False, patch_artist=True, widths=0.6)  # fmt: skip
        for box, median, (index, _) in zip(boxes["boxes"], boxes["medians"], found, strict=True):
            box.set(facecolor=style_of(index)["color"], alpha=0.55)
            median.set(color="black", linewidth=1.4)
        axes.set_yticks(range(1, len(found) + 1), [label if panel == 1 else "" for _, label in found])
        axes.set_ylim(len(found) + 0.6, 0.4)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=column == "position"))
        axes.set_xlabel(title)
    return figure


def shift(traced: Mapping[tuple[int, str], pa.Table]) -> Figure | None:
    """Mean ‖ΔV‖/‖V‖ against the token index, of the runs that steer."""
    steered = {key: table for key, table in traced.items() if journals.trace_arrays(table, "shift")[0].any()}
    if not steered:
        return None
    figure = Figure(figsize=(6.5, 2.8), layout="constrained")
    axes = figure.add_subplot()
    for (index, label), table in steered.items():
        _band(axes, journals.curve(table, "shift"), index, label)
    axes.set_ylabel("‖ΔV‖ / ‖V‖")
    axes.set_xlabel("Generated token")
    axes.set_ylim(bottom=0)
    _legend(figure, [label for _, label in steered])
    return figure


def due_steps(traced: Mapping[tuple[int, str], pa.Table]) -> Figure | None:
    """α over time and ΔH of the due steps of one sample a steered run: the sample with the median of updates."""
    chosen = {}
    for key, table in traced.items():
        updates = pa.compute.struct_field(table["trace"], "updates").to_numpy(zero_copy_only=False).astype(float)
        if np.nanmax(updates, initial=0) > 0:
            steered = np.flatnonzero(updates > 0)
            middle = steered[np.argsort(updates[steered], kind="stable")[len(steered) // 2]]
            chosen[key] = table.slice(int(middle), 1).to_pylist()[0]
    if not chosen:
        return None
    figure = Figure(figsize=(6.5, 0.6 + 2.6 * len(chosen)), layout="constrained")
    parts = np.atleast_1d(figure.subfigures(len(chosen), 1))
    for part, ((_, label), record) in zip(parts, chosen.items(), strict=True):
        part.suptitle(f"{label}: {record['task']}, document {record['doc_id']}", fontsize=9)
        upper, lower = part.subplots(2, 1, sharex=True)
        draw_alpha(upper, record["trace"])
        draw_change(lower, record["trace"])
        lower.set_xlabel("Generated token")
        lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def draw_alpha(axes, trace: Mapping) -> None:
    """α of the due steps: +1 explores (raises the entropy), -1 exploits (lowers it)."""
    alpha = np.array(trace["alpha"], dtype=float)
    for sign, colour, marker, name in (
        (1, COLOURS[1], "^", "α = +1, explore"),
        (-1, COLOURS[0], "v", "α = −1, exploit"),
    ):
        at = np.flatnonzero(np.sign(alpha) == sign)
        axes.plot(at + 1, alpha[at], marker, color=colour, ms=4, linestyle="none", label=name)
    axes.set_ylim(-1.6, 1.6)
    axes.set_yticks([-1, 0, 1])
    axes.set_ylabel("α")
    axes.legend(loc="center right", fontsize=7, frameon=True, framealpha=0.8, edgecolor="none")


def draw_change(axes, trace: Mapping) -> None:
    """ΔH of the due steps, nats."""
    change = np.array(trace["entropy_change"], dtype=float)
    alpha = np.array(trace["alpha"], dtype=float)
    at = np.flatnonzero(np.isfinite(change))
    colours = [COLOURS[1] if alpha[i] > 0 else COLOURS[0] for i in at]
    axes.vlines(at + 1, 0, change[at], color=colours, linewidth=1.2)
    axes.scatter(at + 1, change[at], c=colours, s=8)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_ylabel("ΔH (nats)")
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=False)


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file."""
    return _rendered(figure, "png")


def save(figure: Figure, prefix: Path, image: bytes | None = None) -> list[Path]:
    """Writes ``PREFIX.png`` (``image`` where it has been rendered before) and ``PREFIX.svg``."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    contents = {"png": image or png(figure), "svg": _rendered(figure, "svg")}
    paths = [prefix.with_name(f"{prefix.name}.{suffix}") for suffix in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        path.write_bytes(content)
    return paths


def _rendered(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format=kind)
    return buffer.getvalue()
