"""A comparison as text: terminal, Markdown, CSV, JSON, LaTeX and HTML."""

import base64
import json
import re
from collections.abc import Hashable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lmms_eval_vreason.journal.summary import format_facts
from lmms_eval_vreason.report.catalogue import SOURCE
from lmms_eval_vreason.report.compare import Comparison
from lmms_eval_vreason.report.files import write_files
from lmms_eval_vreason.report.render import render

UNKNOWN = "–"
MARK = "†"
# What pandas leaves as it is, and what a T1 or OT1 font has not got.
_LATEX = {"±": r"$\pm$", "Δ": r"$\Delta$", UNKNOWN: "--", MARK: r"$^\dagger$", "<": "$<$", ">": "$>$"}
_WIDE = 110  # columns of a terminal that also shows which test was made
_TEXT = dict.fromkeys(("Benchmark", "Run", "Test", "Model"), "text")
_LONG = dict.fromkeys(("Model arguments", "Settings", "Steering"), "long")
Cell = dict[Hashable, Any]


def _number(template: str, value: float) -> str:
    return UNKNOWN if pd.isna(value) else template.format(value)


# Heading → column of the comparison's table, and the format of its values.
_COSTS = {
    "Output tokens": ("output_tokens", "{:.1f}"),
    "Thinking tokens": ("thinking_tokens", "{:.1f}"),
    "Answered": ("answered", "{:.1f}%"),
    "Cut": ("cut", "{:.1f}%"),
    "Seconds a sample": ("seconds", "{:.2f}"),
    "Peak memory": ("peak_memory_gb", "{:.2f} GB"),
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
            "Test": UNKNOWN if pd.isna(cell["test"]) else cell["test"],
        }
        for cell in _ordered(comparison)
    )


def cost_table(comparison: Comparison) -> pd.DataFrame:
    """One row a benchmark and run: tokens, share answered and cut, seconds a sample, peak memory."""
    return pd.DataFrame(
        {**_named(cell), **{heading: _number(template, cell[column]) for heading, (column, template) in _COSTS.items()}}
        for cell in _ordered(comparison)
        if not (cell["published"] and pd.isna(cell["output_tokens"]))
    )


def _settings_table(comparison: Comparison) -> pd.DataFrame:
    """One row a run: how it was made."""
    rows = []
    for run in (run for group in comparison.groups for run in group.runs):
        arguments = run.settings.get("model_args", UNKNOWN)
        if isinstance(arguments, dict):
            arguments = ",".join(f"{name}={value}" for name, value in arguments.items())
        model = {"Model": run.settings.get("model", UNKNOWN), "Model arguments": arguments}
        rest = [f"{name} {value}" for name, value in run.settings.items() if name not in ("model", "model_args")]
        rows.append({"Run": run.label, **model, "Settings": ", ".join(rest)})
    return pd.DataFrame(rows)


def _all_tables(comparison: Comparison) -> dict[str, pd.DataFrame]:
    """Heading → table of texts, of the Markdown file and of the page."""
    steering = pd.DataFrame({"Run": name, "Steering": format_facts(facts)} for name, facts in comparison.steering)
    tables = {"Scores": score_table(comparison), "Cost": cost_table(comparison)}
    return {**tables, **({} if steering.empty else {"Steering summary": steering}), "Runs": _settings_table(comparison)}


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


def print_terminal(comparison: Comparison, console: Console) -> None:
    """Prints the tables, warnings and notices."""
    scores = score_table(comparison)
    if console.width < _WIDE:
        scores = scores.drop(columns="Test")
    for title, table in (("Scores", scores), ("Cost", cost_table(comparison))):
        console.print(_rich(title, table, console.width))
    for name, facts in comparison.steering:
        console.print(f"{name}: {format_facts(facts)}", markup=False, highlight=False)
    styled = (("Warning: ", comparison.warnings, "yellow"), ("Note: ", comparison.notices, "dim"))
    for kind, sentences, style in (*styled, ("", footnotes(comparison), "dim")):
        for sentence in sentences:
            console.print(kind + sentence, style=style, markup=False, highlight=False)


def _rich(title: str, frame: pd.DataFrame, width: int) -> Table:
    """A table that breaks lines between words only, as long as ``width`` characters leave it room."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    cells = {column: [column, *frame[column]] for column in frame.columns}
    narrow = sum(max(map(len, texts)) + 2 for texts in cells.values()) > width
    for column, texts in cells.items():
        # A figure and its error stay together.
        parts = [*column.split(), *(texts[1:] if column not in _TEXT else " ".join(texts).split())]
        fixed = max(map(len, parts)) if narrow else None
        table.add_column(column, justify="left" if column in _TEXT else "right", width=fixed, overflow="fold")
    for row in _without_repeats(frame).values.tolist():
        if row[0] and table.row_count:
            table.add_section()
        table.add_row(*map(escape, row))
    return table


def _without_repeats(frame: pd.DataFrame) -> pd.DataFrame:
    """A benchmark's name stands in its first row only."""
    return frame.assign(Benchmark=frame["Benchmark"].where(frame["Benchmark"].ne(frame["Benchmark"].shift()), ""))


def markdown(comparison: Comparison) -> str:
    """The whole report as Markdown."""
    return render("report.md", tables=_all_tables(comparison), **_sentences(comparison))


def _sentences(comparison: Comparison) -> dict[str, list[str]]:
    notes = footnotes(comparison)
    return {"warnings": comparison.warnings, "notices": comparison.notices, "footnotes": notes}


def report_page(comparison: Comparison, images: Mapping[str, bytes]) -> str:
    """The report as one self-contained HTML page.

    Args:
        comparison: what to show.
        images: name → PNG of a figure.
    """
    tables = _all_tables(comparison)
    encoded = {name: base64.b64encode(content).decode() for name, content in images.items()}
    kinds = {column: (_TEXT | _LONG).get(column, "") for frame in tables.values() for column in frame.columns}
    names = [group.name for group in comparison.groups]
    about = {"names": names, "kinds": kinds, "mark": MARK, "images": encoded}
    return render("report.html", tables=tables, **about, **_sentences(comparison))


def latex(comparison: Comparison) -> str:
    """The score table as a LaTeX ``tabular`` for ``booktabs``, repeated benchmark names left blank."""
    frame = _without_repeats(score_table(comparison).drop(columns="Test"))
    body = frame.to_latex(index=False, escape=True, column_format="ll" + "r" * (len(frame.columns) - 2))
    for plain, command in _LATEX.items():
        body = body.replace(plain, command)
    body = re.sub(r"(?<=[\s\[])-(?=\d)", "$-$", body)
    notes = "\n".join(f"% {sentence}" for sentence in [*footnotes(comparison), *comparison.warnings])
    return f"{notes}\n{body}"


def as_json(comparison: Comparison) -> str:
    """Everything as JSON: cells, steering facts, settings, warnings, notices; unknown figures are null."""
    runs = [run for group in comparison.groups for run in group.runs]
    content: dict[str, Any] = {
        "baseline": comparison.groups[0].name,
        "cells": comparison.table.astype(object).where(comparison.table.notna(), None).to_dict("records"),
        "steering": [{"label": name, **asdict(facts)} for name, facts in comparison.steering],
        "runs": [{"label": run.label, "path": str(run.path), "settings": run.settings} for run in runs],
        **_sentences(comparison),
    }
    return json.dumps(content, ensure_ascii=False, indent=1, default=float) + "\n"


def write_tables(comparison: Comparison, prefix: Path) -> list[Path]:
    """Writes ``PREFIX.md``, ``.csv``, ``.json`` and ``.tex``; returns their paths."""
    contents = {
        ".md": markdown(comparison),
        ".csv": comparison.table.to_csv(index=False),
        ".json": as_json(comparison),
        ".tex": latex(comparison),
    }
    return write_files(prefix, contents)
