"""A comparison as text: terminal, Markdown, CSV, JSON, LaTeX and HTML."""

import json
import re
from collections.abc import Hashable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from lmms_eval_vreason.journal.summary import format_facts
from lmms_eval_vreason.report.catalogue import SOURCE
from lmms_eval_vreason.report.compare import Comparison
from lmms_eval_vreason.report.files import write_files
from lmms_eval_vreason.report.render import as_data_url, render

UNKNOWN = "–"
MARK = "†"
# What pandas leaves as it is, and what a T1 or OT1 font has not got.
_LATEX = {"±": r"$\pm$", "Δ": r"$\Delta$", UNKNOWN: "--", MARK: r"$^\dagger$", "<": "$<$", ">": "$>$"}
_TEXT = dict.fromkeys(("Benchmark", "Run", "Test", "Model"), "text")
_LONG = dict.fromkeys(("Model arguments", "Settings", "Steering"), "long")
Cell = dict[Hashable, Any]

# Heading → the figure's name in the comparison, and the format of its values.
_COSTS = {
    "Output tokens": ("output_tokens", "{:.1f}"),
    "Thinking tokens": ("thinking_tokens", "{:.1f}"),
    "Answered": ("answered", "{:.1f}%"),
    "Cut": ("cut", "{:.1f}%"),
    "Seconds a sample": ("seconds", "{:.2f}"),
    "Peak memory": ("peak_memory_gb", "{:.2f} GB"),
}
_ENTROPY = {
    "Entropy that tokens were chosen from (nats)": ("chosen_from", "{:.4f}"),
    "Size of ΔH at updates, of H": ("entropy_change_percent", "{:.2f}%"),
    "Updates that changed the likeliest token": ("changed_percent", "{:.2f}%"),
    "Moving average peaks at token": ("peak_token", "{:.0f}"),
    "Height of that peak (nats)": ("peak", "{:.4f}"),
}


def score_table(comparison: Comparison) -> pd.DataFrame:
    """One row a benchmark and run: score ± standard error, difference to the first run, p-value and Holm's."""
    return pd.DataFrame(
        {
            **_named(cell),
            "n": _number("{:.0f}", cell["samples"]),
            "Score ± SE": _score(cell),
            "Δ to first [95% CI]": _difference(cell),
            "p": _p(cell["p"]),
            "p (Holm)": _p(cell["p_holm"]),
            "Test": _number("{}", cell["test"]),
        }
        for cell in _ordered(comparison)
    )


def cost_table(comparison: Comparison) -> pd.DataFrame:
    """One row a benchmark and run: tokens, share answered and cut, seconds a sample, peak memory."""
    return pd.DataFrame(
        {**_named(cell), **_figures(_COSTS, cell)}
        for cell in _ordered(comparison)
        if not (cell["published"] and pd.isna(cell["output_tokens"]))
    )


def entropy_table(comparison: Comparison) -> pd.DataFrame:
    """One row a label with traces: the entropy that its tokens were chosen from, and what updates did to it."""
    return pd.DataFrame({"Run": name, **_figures(_ENTROPY, own)} for name, own in comparison.entropy.items())


def _settings_table(comparison: Comparison) -> pd.DataFrame:
    """One row a run: how it was made."""
    rows = []
    for run in (run for group in comparison.groups for run in group.runs):
        settings = dict(run.settings)
        model, arguments = (settings.pop(name, UNKNOWN) for name in ("model", "model_args"))
        if isinstance(arguments, dict):
            arguments = ",".join(f"{name}={value}" for name, value in arguments.items())
        rest = ", ".join(f"{name} {value}" for name, value in settings.items())
        rows.append({"Run": run.label, "Model": model, "Model arguments": arguments, "Settings": rest})
    return pd.DataFrame(rows)


def footnotes(comparison: Comparison) -> list[str]:
    """How the figures were made, in sentences."""
    first, table = comparison.groups[0].name, comparison.table
    extra = {"seeds": table["seed_std"].notna().any(), "published": table["published"].any()}
    return render("footnotes.txt", first=first, mark=MARK, source=SOURCE, **extra).splitlines()


def _ordered(comparison: Comparison) -> list[Cell]:
    """The table's cells, benchmark by benchmark, means last, published rows after the runs."""
    blocks = comparison.table.groupby("benchmark", sort=False)
    return [cell for _, rows in blocks for cell in rows.to_dict("records")]


def _named(cell: Cell) -> dict[str, str]:
    return {"Benchmark": cell["benchmark"], "Run": f"{cell['label']} {MARK}" if cell["published"] else cell["label"]}


def _figures(columns: Mapping[str, tuple[str, str]], values: Mapping[Any, Any]) -> dict[str, str]:
    return {heading: _number(template, values[name]) for heading, (name, template) in columns.items()}


def _number(template: str, value: Any) -> str:
    return UNKNOWN if pd.isna(value) else template.format(value)


def _score(cell: Cell) -> str:
    digits = 1 if cell["unit"] == "%" else 3
    error: float = cell["se"] if pd.isna(cell["seed_std"]) else cell["seed_std"]
    return f"{cell['score']:.{digits}f}" + ("" if pd.isna(error) else f" ± {error:.{digits}f}")


def _difference(cell: Cell) -> str:
    template = "{:+.1f}" if cell["unit"] == "%" else "{:+.3f}"
    shown, low, high = (_number(template, cell[name]) for name in ("difference", "low", "high"))
    if shown == UNKNOWN:
        return UNKNOWN
    return f"{shown} [{UNKNOWN if low == UNKNOWN else f'{low}, {high}'}]"


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else _number("{:.3f}", value)


def _sentences(comparison: Comparison) -> dict[str, list[str]]:
    notes = footnotes(comparison)
    return {"warnings": comparison.warnings, "notices": comparison.notices, "footnotes": notes}


def _tables(comparison: Comparison) -> dict[str, pd.DataFrame]:
    """Heading → table of texts."""
    steering = pd.DataFrame({"Run": name, "Steering": format_facts(facts)} for name, facts in comparison.steering)
    tables = {
        "Scores": score_table(comparison),
        "Cost": cost_table(comparison),
        "Entropy": entropy_table(comparison),
        "Steering summary": steering,
        "Runs": _settings_table(comparison),
    }
    return {heading: table for heading, table in tables.items() if not table.empty}


def terminal(comparison: Comparison, width: int) -> str:
    """The tables, warnings and notices in lines of at most ``width`` characters; a wide table goes on below."""
    tables = _tables(comparison)
    steering = [f"{name}: {format_facts(facts)}" for name, facts in comparison.steering]
    shown = {heading: tables[heading].set_index(["Benchmark", "Run"]) for heading in ("Scores", "Cost")}
    if "Entropy" in tables:
        shown["Entropy"] = tables["Entropy"].set_index("Run").T
    return render("report.txt", tables=shown, width=width, steering=steering, **_sentences(comparison))


def markdown(comparison: Comparison) -> str:
    """The whole report as Markdown."""
    return render("report.md", tables=_tables(comparison), **_sentences(comparison))


def report_page(comparison: Comparison, images: Mapping[str, Path]) -> str:
    """The report as one self-contained HTML page.

    Args:
        comparison: what to show.
        images: name → a figure's PNG file.
    """
    about = {
        "tables": _tables(comparison),
        "names": [group.name for group in comparison.groups],
        "kinds": _TEXT | _LONG,
        "mark": MARK,
        "images": {name: as_data_url(image) for name, image in images.items()},
    }
    return render("report.html", **about, **_sentences(comparison))


def latex(comparison: Comparison) -> str:
    """The score table as a LaTeX ``tabular`` for ``booktabs``, repeated benchmark names left blank."""
    frame = score_table(comparison).drop(columns="Test")
    frame["Benchmark"] = frame["Benchmark"].mask(frame["Benchmark"].duplicated(), "")
    body = frame.to_latex(index=False, escape=True, column_format="ll" + "r" * (len(frame.columns) - 2))
    for plain, command in _LATEX.items():
        body = body.replace(plain, command)
    body = re.sub(r"(?<=[\s\[])-(?=\d)", "$-$", body)
    notes = "\n".join(f"% {sentence}" for sentence in [*footnotes(comparison), *comparison.warnings])
    return f"{notes}\n{body}"


def as_json(comparison: Comparison) -> str:
    """Everything as JSON: cells, entropy, steering facts, settings, warnings, notices; unknown figures are null."""
    runs = [run for group in comparison.groups for run in group.runs]
    content: dict[str, Any] = {
        "baseline": comparison.groups[0].name,
        "cells": [_known(cell) for cell in comparison.table.to_dict("records")],
        "entropy": [{"label": name, **_known(own)} for name, own in comparison.entropy.items()],
        "steering": [{"label": name, **asdict(facts)} for name, facts in comparison.steering],
        "runs": [{"label": run.label, "path": str(run.path), "settings": run.settings} for run in runs],
        **_sentences(comparison),
    }
    return json.dumps(content, ensure_ascii=False, indent=1, default=float) + "\n"


def _known(figures: Mapping[Any, Any]) -> dict[str, Any]:
    return {name: None if pd.isna(value) else value for name, value in figures.items()}


def write_tables(comparison: Comparison, prefix: Path) -> list[Path]:
    """Writes ``PREFIX.md``, ``.csv``, ``.json`` and ``.tex``; returns their paths."""
    contents = {
        ".md": markdown(comparison),
        ".csv": comparison.table.to_csv(index=False),
        ".json": as_json(comparison),
        ".tex": latex(comparison),
    }
    return write_files(prefix, contents)
