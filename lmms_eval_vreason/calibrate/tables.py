"""The replays' lines → table, recommendation and picture."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
from matplotlib import style
from matplotlib.figure import Figure

from lmms_eval_vreason.report.figures import COLOURS, STYLE

# Part of an answer → its first token and the one behind its last, from 0.
PARTS = {"1-20": (0, 20), "21-50": (20, 50), "51-": (50, 1 << 62)}
# The rule's bounds, ours: ΔH in percent of H, KL in nats a token, seconds a token over the base model's.
LEAST_CHANGE, MOST_KL, MOST_COST = -10.0, 0.1, 1.10
RULE = (
    f"The rule: the least KL of the settings with ΔH at most {LEAST_CHANGE:g}% of H where the method exploits, a "
    f"KL under {MOST_KL:g} nats a token, and a cost under {MOST_COST:.2f}; "
    "switch before minimize, never maximize or random."
)
_NUMBERS = ("entropy", "base_entropy", "kl", "changed", "exploiting")
_DIGITS = {"base H": 3, "H": 3, "KL": 4, "cost": 2}
_DRAWN = 0.25  # Share of the samples that have to reach a token for it to be drawn.


def token_frame(lines: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a token of every replay: setting, token (from 0), entropy, base_entropy, kl, changed, exploiting."""
    frames = []
    for line in lines:
        for values in zip(*(line[name] for name in _NUMBERS), strict=True):
            frame = pd.DataFrame(dict(zip(_NUMBERS, values, strict=True)))
            frames.append(frame.assign(setting=line["setting"], token=frame.index))
    return pd.concat(frames, ignore_index=True)


def table(lines: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a setting, in their order.

    Columns: the base model's H and the setting's (nats a token); ΔH in percent of the base model's H over the parts,
    over all tokens, and over those at which the entropy's moving average is under its peak (``exploit``); choices
    changed (%), KL (nats a token), shift (%), cost (seconds a token over the base model's).
    """
    rows, lines = {}, list(lines)
    for name, own in token_frame(lines).groupby("setting", sort=False):
        masks = {part: (own["token"] >= start) & (own["token"] < end) for part, (start, end) in PARTS.items()}
        masks |= {"all": own["token"] >= 0, "exploit": own["exploiting"]}
        replays = [line for line in lines if line["setting"] == name]
        shifts = [shift for line in replays for shift in line["shift"]]
        rows[name] = {
            "base H": own["base_entropy"].mean(),
            "H": own["entropy"].mean(),
            **{part: _change(own[mask]) for part, mask in masks.items()},
            "choices": 100 * own["changed"].mean(),
            "KL": own["kl"].mean(),
            "shift": 100 * sum(shifts) / len(shifts),
            "cost": sum(line["seconds"] for line in replays) / sum(line["base_seconds"] for line in replays),
        }
    return pd.DataFrame(rows).T.rename_axis("setting")


def as_text(rows: pd.DataFrame) -> str:
    """The table for a terminal."""
    return rows.round({name: _DIGITS.get(name, 1) for name in rows.columns}).to_string(na_rep="-")


def recommended(rows: pd.DataFrame, policies: Mapping[str, str]) -> str | None:
    """The setting that the :data:`RULE` names, if one does. ``policies``: setting → its policy."""
    fits = rows[(rows["exploit"] <= LEAST_CHANGE) & (rows["KL"] < MOST_KL) & (rows["cost"] < MOST_COST)]
    for policy in ("switch", "minimize"):
        if names := [name for name in fits.index if policies[name] == policy]:
            return str(fits.loc[names, "KL"].idxmin())
    return None


def entropy_figure(lines: Iterable[Mapping[str, Any]]) -> Figure:
    """The entropy of the distribution that a token was chosen from, by token, of the base model and each setting."""
    tokens = token_frame(lines)
    groups = dict(iter(tokens.groupby("setting", sort=False)))
    base = next(iter(groups.values())).groupby("token")["base_entropy"]
    last = base.size()[base.size() >= _DRAWN * base.size().max()].index.max()
    palette = [colour for colour in COLOURS if colour != "#000000"]
    with style.context(STYLE):
        figure = Figure(figsize=(6.5, 4), layout="constrained")
        axes = figure.subplots()
        curves = {"base": base.mean(), **{str(k): own.groupby("token")["entropy"].mean() for k, own in groups.items()}}
        for index, (name, curve) in enumerate(curves.items()):
            smooth = curve.loc[:last].rolling(5, min_periods=1, center=True).mean()
            colour = palette[(index - 1) % len(palette)] if index else "black"
            axes.plot(smooth.index + 1, smooth, "--" if index > len(palette) else "-", color=colour, label=name)
        axes.set(xlabel="Token", ylabel="Entropy chosen from (nats, mean of 5)")
        figure.legend(loc="outside upper center", ncols=3)
    return figure


def _change(tokens: pd.DataFrame) -> float:
    """ΔH in percent of H; nan without tokens, or where the base model is certain of them all."""
    base = tokens["base_entropy"].sum()
    return float(100 * (tokens["entropy"].sum() / base - 1)) if base else float("nan")
