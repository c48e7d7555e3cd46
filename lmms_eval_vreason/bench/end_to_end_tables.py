"""The end-to-end benchmark's figures: the rounds' measurements → one record a row, and the tables that show them."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lmms_eval_vreason.bench.command_runs import PARTS, Measurement, Row
from lmms_eval_vreason.bench.machine import machine_line, print_table

# The rows that ratios are to: lmms-eval's own class, and ours without the method at the same batch size and dtype.
STOCK, OFF = "stock", "ours, policy=off"
# Ratio → (the base row, the seconds that are compared). A run with slowed reading is only compared with the same run
# at full speed.
_RATIOS = {
    "stock": ("stock", "phase"),
    "stock_cpu": ("stock", "cpu"),
    "stock_command": ("stock", "command"),
    "off": ("off", "phase"),
    "off_cpu": ("off", "cpu"),
    "no_delay": ("no_delay", "phase"),
}


def summary(measured: Mapping[Row, Sequence[Measurement]], tokens: int) -> list[dict[str, Any]]:
    """One record a row: medians over the rounds, ratios to the base rows, and their spread.

    Args:
        measured: Row → its measurements, one a round. A ratio is to the run of the same round.
        tokens: How many each sample has to have. A row with others gets no ratio, and none is taken to it.
    """
    frames = {row: pd.DataFrame([run.seconds for run in runs]) for row, runs in measured.items()}
    whole = {row for row, runs in measured.items() if _tokens(runs) == [tokens, tokens]}
    records = []
    for row, runs in measured.items():
        bases = _bases(row, measured)
        ratios: dict[str, dict[str, float] | None] = dict.fromkeys(_RATIOS)
        for name, (which, column) in _RATIOS.items():
            base = bases.get(which)
            if base in whole and row in whole:
                ratio = frames[base][column] / frames[row][column]
                ratios[name] = {"median": ratio.median(), "lowest": ratio.min(), "highest": ratio.max()}
        same, stock = None, bases.get("stock")
        if stock is not None and row.dtype == stock.dtype:
            outputs = measured[stock][0].outputs
            same = sum(text == outputs[doc][1] for doc, (_, text) in runs[0].outputs.items())
        records.append({**_figures(row, runs, frames[row]), "ratios": ratios, "same_answers": same})
    return records


def _bases(row: Row, rows: Mapping[Row, Any]) -> dict[str, Row]:
    """The rows that ``row`` is compared with, by the names in :data:`_RATIOS`, as far as there are any."""
    by_key = {tuple(other.key.values()): other for other in rows}
    if row.delay:
        wanted = {"no_delay": by_key.get(tuple({**row.key, "delay": 0.0}.values()))}
    else:
        wanted = {"stock": next((other for other in rows if other.name == STOCK), None)}
        if row.name not in (STOCK, OFF):
            wanted["off"] = by_key.get(tuple({**row.key, "name": OFF}.values()))
    return {name: base for name, base in wanted.items() if base is not None}


def _tokens(runs: Sequence[Measurement]) -> list[int]:
    """The fewest and the most generated tokens of a sample."""
    counts = [count for run in runs for count, _ in run.outputs.values()]
    return [min(counts), max(counts)]


def _figures(row: Row, runs: Sequence[Measurement], seconds: pd.DataFrame) -> dict[str, Any]:
    rates = (60 * len(runs[0].outputs) / seconds[["phase", "command"]]).assign(
        tokens=[run.tokens for run in runs] / seconds["phase"]
    )
    medians = seconds.median()
    parts = medians[list(PARTS)]
    return {
        **row.key,
        "attention": runs[0].attention,
        "samples_per_minute": rates["phase"].median(),
        "samples_per_minute_rounds": rates["phase"].tolist(),
        "command_samples_per_minute": rates["command"].median(),
        "tokens_per_second": rates["tokens"].median(),
        "tokens_a_sample": _tokens(runs),
        "seconds": medians.to_dict(),
        "readings": runs[0].readings,
        "vision_runs": runs[0].vision_runs,
        "peak_bytes": max(run.peak_bytes for run in runs),
        "limit": {"part": parts.idxmax(), "share": parts.max() / parts.sum()},
    }


def show(report: Mapping[str, Any]) -> None:
    """Prints the setting and the tables."""
    settings, shape = report["settings"], report["shape"]
    print(
        f"\nshape {shape['name']}: {shape['layers']} layers of width {shape['hidden_size']}; "
        f"{settings['videos']} videos x {settings['questions']} questions, {report['video_tokens']} video tokens, "
        f"{settings['tokens']} new tokens a sample\n"
        f"{machine_line(report)}; {settings['attention']}\n"
        f"medians of {settings['rounds']} interleaved rounds [lowest, highest]; ratios are of samples a minute while "
        "answers are generated (generate_until), to the same round's run\n"
    )
    rows = [{**row, **_words(row)} for row in report["rows"]]
    run = {"run": "{name}", "dtype": "{dtype}", "batch": "{batch}"}
    if settings["reading_delay"]:
        run |= {"delay of each reading, s": "{delay:.2f}", "x without delay": "{no_delay}"}
    speed = _SPEED if settings["device"] == "cpu" else {k: v for k, v in _SPEED.items() if not k.endswith("CPU time")}
    print_table(rows, run | speed)
    print("\nSeconds of a run, by what they went into:\n")
    print_table(rows, run | _TIME)


_WITH_SPREAD = "{median:.2f} [{lowest:.2f}, {highest:.2f}]"
_SPEED = {
    "samples/min": "{samples_per_minute:.1f}",
    "x stock": "{stock}",
    "x stock, CPU time": "{stock_cpu}",
    "x policy=off": "{off}",
    "x policy=off, CPU time": "{off_cpu}",
    "tokens/s": "{tokens_per_second:.1f}",
    "whole command, samples/min": "{command_samples_per_minute:.1f}",
    "x stock, whole command": "{stock_command}",
    "peak MB": "{megabytes:.0f}",
    "answers as stock": "{same}",
    "limited by": "{limited_by}, {limit[share]:.0%}",
}
_TIME = {
    "imports and loading": "{seconds[loading]:.2f}",
    **{words: f"{{seconds[{part}]:.2f}}" for part, words in PARTS.items()},
    "scoring and exit": "{seconds[scoring]:.2f}",
    "videos read": "{readings}",
    "read in the background, s": "{seconds[reading_in_background]:.2f}",
    "vision tower runs": "{vision_runs}",
}


def _words(row: Mapping[str, Any]) -> dict[str, Any]:
    """The cells of a row that take more than a format; an absent figure is an empty cell."""
    words = {}
    for name, ratio in row["ratios"].items():
        cell = "{median:.2f}" if name in ("stock_cpu", "stock_command", "off_cpu") else _WITH_SPREAD
        words[name] = "" if ratio is None else cell.format(**ratio)
    low, high = row["tokens_a_sample"]
    if low != high:
        words["stock"] = f"{low} to {high} tokens a sample: no ratio"
    same = "" if row["same_answers"] is None else row["same_answers"]
    return {**words, "megabytes": row["peak_bytes"] / 1e6, "same": same, "limited_by": PARTS[row["limit"]["part"]]}
