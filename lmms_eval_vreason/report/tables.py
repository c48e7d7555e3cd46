"""A comparison as text: terminal, Markdown, CSV, JSON and LaTeX."""

import json
import math
import re
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lmms_eval_vreason.journal.summary import format_facts
from lmms_eval_vreason.report.compare import MEAN, MEAN_WITH_MRA, Comparison
from lmms_eval_vreason.report.published import SOURCE

UNKNOWN = "–"
MARK = "†"
# What pandas leaves as it is, and what a T1 or OT1 font has not got.
_LATEX = {"±": r"$\pm$", "Δ": r"$\Delta$", UNKNOWN: "--", MARK: r"$^\dagger$", "<": "$<$", ">": "$>$"}
_WIDE = 110  # columns of a terminal that also shows which test was made
_TEXT_COLUMNS = ("Benchmark", "Run", "Test")


def score_table(comparison: Comparison) -> pd.DataFrame:
    """One row a benchmark and run: score ± standard error, difference to the first run, p-value and Holm's."""
    rows = []
    for cell in _ordered(comparison):
        rows.append(
            {
                "Benchmark": cell["benchmark"],
                "Run": _name(cell),
                "n": _whole(cell["samples"]),
                "Score ± SE": _score(cell),
                "Δ to first [95% CI]": _difference(cell),
                "p": _p(cell["p"]),
                "p (Holm)": _p(cell["p_holm"]),
                "Test": cell["test"] if isinstance(cell["test"], str) else UNKNOWN,
            }
        )
    return pd.DataFrame(rows)


def cost_table(comparison: Comparison) -> pd.DataFrame:
    """One row a benchmark and run: tokens, share answered and cut, seconds a sample, peak memory."""
    rows = []
    for cell in _ordered(comparison):
        if cell["published"] and math.isnan(cell["output_tokens"]):
            continue
        rows.append(
            {
                "Benchmark": cell["benchmark"],
                "Run": _name(cell),
                "Output tokens": _number(cell["output_tokens"], 1),
                "Thinking tokens": _number(cell["thinking_tokens"], 1),
                "Answered": _number(cell["answered"], 1, "%"),
                "Cut": _number(cell["cut"], 1, "%"),
                "Seconds a sample": _number(cell["seconds"], 2),
                "Peak memory": _number(cell["peak_memory_gb"], 2, " GB"),
            }
        )
    return pd.DataFrame(rows)


def steering_table(comparison: Comparison) -> pd.DataFrame:
    """One row a run with a journal: whether the method was on."""
    return pd.DataFrame([{"Run": name, "Steering": format_facts(facts)} for name, facts in comparison.steering])


def settings_table(comparison: Comparison) -> pd.DataFrame:
    """One row a run: how it was made."""
    rows = []
    for label in comparison.labels:
        for run in label.runs:
            settings = dict(run.settings)
            model = settings.pop("model", UNKNOWN)
            arguments = settings.pop("model_args", UNKNOWN)
            if isinstance(arguments, dict):
                arguments = ",".join(f"{name}={value}" for name, value in arguments.items())
            rest = ", ".join(f"{name} {value}" for name, value in settings.items())
            rows.append({"Run": label.name, "Model": model, "Model arguments": arguments, "Settings": rest})
    return pd.DataFrame(rows)


def footnotes(comparison: Comparison) -> list[str]:
    """How the figures were made, in sentences."""
    notes = [
        "Score: mean over samples; SE: standard error, clustered by video where the video is known.",
        f"Δ: to {comparison.labels[0].name}, over the samples that both runs have; 95% interval by a bootstrap of "
        "whole videos (expanded percentiles).",
        "p: exact McNemar test where answers are right or wrong, else the clustered bootstrap; Holm's correction over "
        "the benchmarks of a run. The means are tested by the bootstrap and stand outside the correction.",
    ]
    if comparison.table["seed_std"].notna().any():
        notes.append("Several runs of one label: score is the mean over runs ± std between runs; tests use each "
                     "sample's mean over runs.")  # fmt: skip
    if comparison.table["published"].any():
        notes.append(f"{MARK} {SOURCE}. Other prompts, frames and samples may have been used.")
    return notes


def _ordered(comparison: Comparison) -> list[dict]:
    """The table's cells, benchmark by benchmark, means last, published rows after the runs."""
    table = comparison.table
    names = [name for name in table["benchmark"].unique() if name not in (MEAN, MEAN_WITH_MRA)]
    order = {name: index for index, name in enumerate([*names, MEAN, MEAN_WITH_MRA])}
    complete = table.reindex(columns=table.columns.union(["p", "p_holm", "test", "difference", "low", "high"]))
    return complete.sort_values("benchmark", key=lambda column: column.map(order), kind="stable").to_dict("records")


def _name(cell: dict) -> str:
    return f"{cell['label']} {MARK}" if cell["published"] else cell["label"]


def _whole(value: float) -> str:
    return UNKNOWN if pd.isna(value) else f"{int(value)}"


def _number(value: float, digits: int, unit: str = "") -> str:
    return UNKNOWN if pd.isna(value) else f"{value:.{digits}f}{unit}"


def _digits(cell: dict) -> int:
    return 1 if cell["unit"] == "%" else 3


def _score(cell: dict) -> str:
    digits = _digits(cell)
    error = cell.get("seed_std") if not pd.isna(cell.get("seed_std")) else cell.get("se")
    score = f"{cell['score']:.{digits}f}"
    return score if pd.isna(error) else f"{score} ± {error:.{digits}f}"


def _difference(cell: dict) -> str:
    if pd.isna(cell["difference"]):
        return UNKNOWN
    digits = _digits(cell)
    return f"{cell['difference']:+.{digits}f} [{cell['low']:+.{digits}f}, {cell['high']:+.{digits}f}]"


def _p(value: float) -> str:
    if pd.isna(value):
        return UNKNOWN
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def print_terminal(comparison: Comparison, console: Console) -> None:
    """Prints the tables, warnings and notices."""
    scores = score_table(comparison)
    if console.width < _WIDE:
        scores = scores.drop(columns="Test")
    for title, table in (("Scores", scores), ("Cost", cost_table(comparison))):
        console.print(_rich(title, table, console.width))
    for name, facts in comparison.steering:
        console.print(f"{name}: {format_facts(facts)}", markup=False, highlight=False)
    for kind, sentences in (("Warning", comparison.warnings), ("Note", comparison.notices)):
        for sentence in sentences:
            console.print(f"{kind}: {sentence}", style="yellow" if kind == "Warning" else "dim", markup=False)
    for sentence in footnotes(comparison):
        console.print(sentence, style="dim", markup=False, highlight=False)


def _rich(title: str, frame: pd.DataFrame, width: int) -> Table:
    """A table that breaks lines between words only, as long as ``width`` characters leave it room."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    longest = {column: max(map(len, (column, *frame[column]))) for column in frame.columns}
    narrow = sum(longest.values()) + 2 * len(longest) > width
    for column in frame.columns:
        text = column in _TEXT_COLUMNS
        widths = [len(word) for cell in (column, *frame[column]) for word in cell.split()]
        if not text:  # a figure and its error stay together
            widths += [len(cell) for cell in frame[column]]
        fixed = max(widths) if narrow else None
        table.add_column(column, justify="left" if text else "right", width=fixed, overflow="fold")
    previous = None
    for row in frame.itertuples(index=False):
        if previous not in (None, row[0]):
            table.add_section()
        table.add_row("" if row[0] == previous else row[0], *map(escape, row[1:]))
        previous = row[0]
    return table


def markdown(comparison: Comparison) -> str:
    """The whole report as Markdown."""
    parts = ["# Comparison of runs", _pipe_table(score_table(comparison)), _sentences(footnotes(comparison))]
    if comparison.warnings:
        parts += ["## Warnings", _sentences(comparison.warnings)]
    parts += ["## Cost", _pipe_table(cost_table(comparison))]
    if comparison.steering:
        parts += ["## Is it on?", _pipe_table(steering_table(comparison))]
    parts += ["## Runs", _pipe_table(settings_table(comparison))]
    if comparison.notices:
        parts += ["## Files", _sentences(comparison.notices)]
    return "\n\n".join(parts) + "\n"


def _sentences(sentences: list[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _pipe_table(frame: pd.DataFrame) -> str:
    lines = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"
                     for row in lines)  # fmt: skip


def latex(comparison: Comparison) -> str:
    """The score table as a LaTeX ``tabular`` for ``booktabs``, repeated benchmark names left blank."""
    frame = score_table(comparison).drop(columns="Test")
    first_of_block = frame["Benchmark"].ne(frame["Benchmark"].shift())
    frame["Benchmark"] = frame["Benchmark"].where(first_of_block, "")
    body = frame.to_latex(index=False, escape=True, column_format="ll" + "r" * (len(frame.columns) - 2))
    for plain, command in _LATEX.items():
        body = body.replace(plain, command)
    body = re.sub(r"(?<=[\s\[])-(?=\d)", "$-$", body)
    notes = "\n".join(f"% {sentence}" for sentence in [*footnotes(comparison), *comparison.warnings])
    return f"{notes}\n{body}"


def as_json(comparison: Comparison) -> str:
    """Everything as JSON: cells, steering facts, settings, warnings, notices; unknown figures are null."""
    cells = comparison.table.astype(object).where(comparison.table.notna(), None).to_dict("records")
    content = {
        "baseline": comparison.labels[0].name,
        "cells": cells,
        "steering": [{"label": name, **facts} for name, facts in comparison.steering],
        "runs": [
            {"label": run.label, "path": str(run.path), "settings": run.settings}
            for label in comparison.labels
            for run in label.runs
        ],
        "warnings": comparison.warnings,
        "notices": comparison.notices,
        "footnotes": footnotes(comparison),
    }
    return json.dumps(content, ensure_ascii=False, indent=1, default=float) + "\n"


def write_tables(comparison: Comparison, prefix: Path) -> list[Path]:
    """Writes ``PREFIX.md``, ``.csv``, ``.json`` and ``.tex``; returns their paths."""
    texts = {
        ".md": markdown(comparison),
        ".csv": comparison.table.to_csv(index=False),
        ".json": as_json(comparison),
        ".tex": latex(comparison),
    }
    prefix.parent.mkdir(parents=True, exist_ok=True)
    paths = []
    for suffix, text in texts.items():
        path = prefix.with_name(prefix.name + suffix)
        path.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths
