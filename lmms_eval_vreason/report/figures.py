"""The report's figures, by matplotlib. Colours are Okabe and Ito's, and line styles differ too, for print."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lmms_eval_vreason.report.compare import MEAN, MEAN_WITH_MRA, Comparison, RunGroup
from lmms_eval_vreason.report.journals import curve

# Okabe and Ito (2008), without yellow, which vanishes on white paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
_MARKERS = "osD^vPX"
_PUBLISHED_MARKERS = "*ph8"
_LEGEND_CHARACTERS = 84  # of 9 points on 6.5 inches
STYLE = "lmms_eval_vreason.report.figures"  # figures.mplstyle
CHOSEN_FROM = "Entropy that tokens\nwere chosen from (nats)"
SHIFT = "‖ΔV‖ / ‖V‖"
Traced = Mapping[int, RunGroup]  # by the label's place in the comparison, which gives its colour


def report_figures(comparison: Comparison) -> dict[str, Figure]:
    """Name → figure, of those that the runs have the data for."""
    traced = {index: group for index, group in enumerate(comparison.groups) if len(group.tokens)}
    steered = {index: group for index, group in traced.items() if group.tokens["shift"].gt(0).any()}
    made: dict[str, Figure | None] = {}
    with style.context(STYLE):
        made["differences"], made["efficiency"] = differences(comparison), efficiency(comparison)
        if traced:
            made["entropy"] = curves(traced, {"chosen_from": CHOSEN_FROM, "ema": "Moving average (nats)"})
        if steered:
            made |= {"shift": curves(steered, {"shift": SHIFT}), "steps": updates(list(steered.values()))}
    return {name: figure for name, figure in made.items() if figure is not None}


def _figure(height: float) -> Figure:
    return Figure(figsize=(6.5, height), layout="constrained")


def _style(index: int) -> dict[str, Any]:
    """Colour and marker of the index-th run."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": _MARKERS[index % len(_MARKERS)]}


def _legend(figure: Figure, labels: Sequence[str], loc: Any = "outside upper center") -> None:
    """A legend in as many columns as fit the figure's width."""
    columns = max(1, min(len(labels), _LEGEND_CHARACTERS // (max(map(len, labels)) + 8)))
    figure.legend(loc=loc, ncols=columns)


def _widen(axes: Axes, least: float) -> None:
    """Gives the x-axis a span of at least ``least``, so that equal values don't fill it with noise."""
    low, high = axes.get_xlim()
    more = max(0.0, least - (high - low)) / 2
    axes.set_xlim(low - more, high + more)


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
    _widen(axes, 2.0)
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
    _widen(axes, 4.0)
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
        for index, group in traced.items():
            found, colour = curve(group.tokens, column), COLOURS[index % len(COLOURS)]
            reach = 1.96 * found["sem"]
            axes.plot(found["mean"], color=colour, linestyle=_LINES[index % len(_LINES)], linewidth=1.4,
                      label=group.name if axes is all_axes[0] else None)  # fmt: skip
            band = (found["mean"] - reach, found["mean"] + reach)
            axes.fill_between(found.index, *band, color=colour, alpha=0.18, linewidth=0)
        axes.set_ylabel(title)
        axes.set_ylim(bottom=0)
    axes.set_xlabel("Generated token (while 5% of the samples last; band: 95% interval of the mean)")
    _legend(figure, [group.name for group in traced.values()])
    return figure


def updates(groups: Sequence[RunGroup]) -> Figure:
    """α over time and ΔH of one sample a steered run: the sample with the median number of updates."""
    figure = _figure(0.6 + 2.6 * len(groups))
    for part, group in zip(figure.subfigures(len(groups), 1, squeeze=False)[:, 0], groups, strict=True):
        counts = group.tokens["alpha"].ne(0).groupby(level=["journal", "sample"]).sum()
        steered = counts[counts > 0].sort_values(kind="stable").index
        journal, sample = steered[len(steered) // 2]
        title = "{task}, document {doc_id}".format(**group.journals[journal].samples.loc[sample])
        part.suptitle(f"{group.name}: {title}", fontsize=9)
        upper, lower = part.subplots(2, 1, sharex=True)
        draw_updates(upper, lower, group.tokens.loc[journal, sample])
        lower.set_xlabel("Generated token")
        lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def draw_updates(signs: Axes, changes: Axes, tokens: pd.DataFrame) -> None:
    """Draws a sample's updates.

    Args:
        signs: gets α: +1 explores (raises the entropy), -1 exploits (lowers it).
        changes: gets ΔH, nats.
        tokens: the sample's trace, indexed by token.
    """
    kinds = ((1, COLOURS[1], "^", "α = +1, explore"), (-1, COLOURS[0], "v", "α = −1, exploit"))
    for sign, colour, marker, label in kinds:
        own = tokens[np.sign(tokens["alpha"]) == sign]
        signs.plot(own["alpha"], marker, color=colour, ms=4, label=label)
        changes.vlines(own.index, 0, own["entropy_change"], color=colour, linewidth=1.2)
        changes.plot(own["entropy_change"], "o", color=colour, ms=8**0.5)
    signs.set(ylim=(-1.6, 1.6), yticks=(-1, 0, 1), ylabel="α")
    signs.legend(loc="center right", fontsize=7, frameon=True, framealpha=0.8, edgecolor="none")
    changes.axhline(0, color="black", linewidth=0.6)
    changes.set_ylabel("ΔH (nats)")
    changes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=False)


def save(figure: Figure, prefix: Path) -> tuple[Path, Path]:
    """Writes ``PREFIX.png`` and ``PREFIX.svg``, and returns their paths."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    image, vector = (prefix.with_name(prefix.name + ending) for ending in (".png", ".svg"))
    with style.context(STYLE):
        figure.savefig(image)
        figure.savefig(vector)
    return image, vector
