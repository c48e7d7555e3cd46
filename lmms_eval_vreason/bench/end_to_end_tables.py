"""The end-to-end benchmark's figures: the rounds' measurements → one record a row, and the tables that show them."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import pandas as pd

from lmms_eval_vreason.bench.command_runs import PARTS, Measurement, Row
from lmms_eval_vreason.bench.machine import machine_line, print_table

# The rows that ratios are to: lmms-eval's own class, and ours without the method at the same batch size and dtype.
STOCK, OFF = "stock", "ours, policy=off"
_WORDS = {
    "reading": "waiting for videos",
    "vision": "vision tower",
    "prefill": "prefill",
    "ordinary": "ordinary steps",
    "due": "due steps",
    "rest": "everything else",
}


def summary(measured: Mapping[Row, Sequence[Measurement]], tokens: int) -> list[dict[str, Any]]:
    """One record a row: medians over the rounds, ratios to :data:`STOCK` and :data:`OFF`, and their spread.

    Args:
        measured: Row → its measurements, one a round. A ratio is to the run of the same round.
        tokens: How many each sample has to have. A row with others gets no ratio, and none is taken to it.
    """
    frames = {row: pd.DataFrame([run.seconds for run in runs]) for row, runs in measured.items()}
    stock = next((row for row in measured if row.name == STOCK), None)
    records = []
    for row, runs in measured.items():
        bases = [] if row.name in (STOCK, OFF) else [r for r in measured if r.key == {**row.key, "name": OFF}]
        off = next(iter(bases), None)

        def ratio(base: Row | None, column: str, row: Row = row) -> dict[str, float] | None:
            if base is None or any(_tokens(measured[r]) != [tokens, tokens] for r in (row, base)):
                return None
            ratios = frames[base][column] / frames[row][column]
            return {"median": ratios.median(), "lowest": ratios.min(), "highest": ratios.max()}

        same = None
        if stock is not None and row.dtype == stock.dtype:
            outputs = measured[stock][0].outputs
            same = sum(text == outputs[doc][1] for doc, (_, text) in runs[0].outputs.items())
        ratios = {
            "stock": ratio(stock, "phase"),
            "stock_cpu": ratio(stock, "cpu"),
            "stock_command": ratio(stock, "command"),
            "off": ratio(off, "phase"),
            "off_cpu": ratio(off, "cpu"),
        }
        records.append({**_figures(row, runs, frames[row]), "ratios": ratios, "same_answers": same})
    return records


def _tokens(runs: Sequence[Measurement]) -> list[int]:
    """The fewest and the most generated tokens of a sample."""
    counts = [count for run in runs for count, _ in run.outputs.values()]
    return [min(counts), max(counts)]


def _figures(row: Row, runs: Sequence[Measurement], seconds: pd.DataFrame) -> dict[str, Any]:
    samples, made = len(runs[0].outputs), pd.Series([run.tokens for run in runs])
    rates, medians = 60 * samples / seconds["phase"], seconds.median()
    parts = medians[list(PARTS)]
    return {
        **row.key,
        "attention": runs[0].attention,
        "samples_per_minute": rates.median(),
        "samples_per_minute_rounds": rates.tolist(),
        "command_samples_per_minute": (60 * samples / seconds["command"]).median(),
        "tokens_per_second": (made / seconds["phase"]).median(),
        "tokens_a_sample": _tokens(runs),
        "seconds": medians.to_dict(),
        "readings": runs[0].readings,
        "vision_runs": runs[0].vision_runs,
        "peak_bytes": max(run.peak_bytes for run in runs),
        "limit": {"part": parts.idxmax(), "share": parts.max() / parts.sum()},
    }


def delays(
    measured: Mapping[Row, Sequence[Measurement]], delayed: Mapping[Row, Sequence[tuple[float, Measurement]]]
) -> list[dict[str, Any]]:
    """One record a row whose reading was slowed: how much longer generation took, medians over the rounds.

    Args:
        measured: Row → its measurements without a delay, one a round.
        delayed: The same with one: (seconds before each video's reading, measurement).
    """
    records = []
    for row, slowed in delayed.items():
        if not slowed:
            continue
        plain = [run.seconds["phase"] for run in measured[row]][: len(slowed)]
        slow = [run.seconds["phase"] for _, run in slowed]
        growths = [b / a - 1 for a, b in zip(plain, slow, strict=True)]
        records.append(
            {
                **row.key,
                "readings": slowed[0][1].readings,
                "delay": median(delay for delay, _ in slowed),
                "seconds": median(plain),
                "delayed_seconds": median(slow),
                "growth": median(growths),
                "growth_spread": [min(growths), max(growths)],
                # While the first video is read there is nothing to generate yet.
                "growth_of_the_first": median(delay / a for (delay, _), a in zip(slowed, plain, strict=True)),
            }
        )
    return records


def show(report: Mapping[str, Any]) -> None:
    """Prints the setting and the tables."""
    settings, shape, where = report["settings"], report["shape"], report["machine"]
    print(
        f"\nshape {shape['name']}: {shape['layers']} layers of width {shape['hidden_size']}; "
        f"{settings['videos']} videos x {settings['questions']} questions, {report['video_tokens']} video tokens, "
        f"{settings['tokens']} new tokens a sample\n"
        f"{machine_line(where, settings['threads'])}; {settings['attention']}\n"
        f"medians of {settings['rounds']} interleaved rounds [lowest, highest]; ratios are of samples a minute while "
        "answers are generated (generate_until), to the same round's run\n"
    )
    print_table(_speed_table(report["rows"], on_cpu=where["device"] == "cpu"))
    print("\nSeconds of a run, by what they went into:\n")
    print_table(_time_table(report["rows"]))
    if report["delays"]:
        print("\nReading slowed by a delay before each video:\n")
        print_table(_delay_table(report["delays"]))


def _columns(rows: Sequence[Mapping[str, Any]], cells: Mapping[str, str]) -> dict[str, list[str]]:
    """Heading → a cell a row, from ``str.format`` templates over the row; every table begins with the row's name."""
    cells = {"run": "{name}", "dtype": "{dtype}", "batch": "{batch}", **cells}
    return {head: [cell.format(**row) for row in rows] for head, cell in cells.items()}


def _speed_table(rows: Sequence[Mapping[str, Any]], *, on_cpu: bool) -> dict[str, list[str]]:
    cells = {
        "samples/min": "{samples_per_minute:.1f}",
        "x stock": "{stock}",
        "x stock, CPU time": "{stock_cpu}",
        "x policy=off": "{off}",
        "x policy=off, CPU time": "{off_cpu}",
        "tokens/s": "{tokens_per_second:.1f}",
        "whole command, samples/min": "{command_samples_per_minute:.1f}",
        "x stock, whole command": "{stock_command}",
        "peak MB": "{peak}",
        "answers as stock": "{same}",
        "limited by": "{limited_by}, {limit[share]:.0%}",
    }
    if not on_cpu:
        cells = {head: cell for head, cell in cells.items() if not head.endswith("CPU time")}
    return _columns([{**row, **_words(row)} for row in rows], cells)


def _words(row: Mapping[str, Any]) -> dict[str, str]:
    words = {name: _ratio(ratio, spread=name in ("stock", "off")) for name, ratio in row["ratios"].items()}
    low, high = row["tokens_a_sample"]
    if low != high:
        words["stock"] = f"{low} to {high} tokens a sample: no ratio"
    same, limit = row["same_answers"], _WORDS[row["limit"]["part"]]
    peak = f"{row['peak_bytes'] / 1e6:.0f}"
    return {**words, "peak": peak, "same": "" if same is None else str(same), "limited_by": limit}


def _ratio(ratio: Mapping[str, float] | None, *, spread: bool) -> str:
    if ratio is None:
        return ""
    return ("{median:.2f} [{lowest:.2f}, {highest:.2f}]" if spread else "{median:.2f}").format(**ratio)


def _time_table(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    seconds = {
        "imports and loading": "loading",
        **{_WORDS[part]: part for part in PARTS},
        "scoring and exit": "scoring",
    }
    cells = {head: f"{{seconds[{name}]:.2f}}" for head, name in seconds.items()}
    cells |= {"videos read": "{readings}", "read in the background, s": "{seconds[reading_in_background]:.2f}"}
    return _columns(rows, {**cells, "vision tower runs": "{vision_runs}"})


def _delay_table(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    cells = {
        "videos read": "{readings}",
        "delay, s": "{delay:.2f}",
        "seconds without": "{seconds:.1f}",
        "with": "{delayed_seconds:.1f}",
        "longer by": "{growth:.1%} [{growth_spread[0]:.1%}, {growth_spread[1]:.1%}]",
        "of which the first video, which cannot be hidden": "{growth_of_the_first:.1%}",
    }
    return _columns(rows, cells)
