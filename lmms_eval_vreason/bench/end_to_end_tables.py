"""The end-to-end benchmark's figures: rounds → rows, and the markdown tables that show them."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from lmms_eval_vreason.bench.command_runs import PARTS, Entry, Measurement

_WORDS = {
    "reading": "waiting for videos",
    "vision": "the vision tower",
    "prefill": "the prefill",
    "ordinary": "ordinary steps",
    "due": "due steps",
    "rest": "all else",
}


def summary(
    rows: Sequence[Entry], measured: Mapping[Entry, Sequence[Measurement]], stock: str, off: str, tokens: int
) -> list[dict[str, Any]]:
    """One record a row: medians over the rounds, ratios to ``stock`` and ``off`` of the same round, and their spread.

    Args:
        stock, off: Names of the rows that ratios are to: the stock class, and ours without the method (at the same
            batch size and dtype).
        tokens: That each sample has to have generated; a row that has not gets no ratio.
    """
    base = next((row for row in rows if row.name == stock), None)
    found = []
    for row in rows:
        runs = measured[row]
        mine = _figures(row, runs)
        sound = all(count == tokens for run in runs for count, _ in run.outputs.values())
        plain = next((r for r in rows if (r.name, r.batch, r.dtype) == (off, row.batch, row.dtype)), None)
        plain = None if row.name in (stock, off) else plain
        mine["ratios"] = {
            "stock": _ratios(runs, measured.get(base), "phase", sound),
            "stock_cpu": _ratios(runs, measured.get(base), "cpu", sound),
            "stock_command": _ratios(runs, measured.get(base), "command", sound),
            "off": _ratios(runs, measured.get(plain), "phase", sound),
            "off_cpu": _ratios(runs, measured.get(plain), "cpu", sound),
        }
        mine["same_answers"] = _same(runs, measured.get(base)) if base is not None and row.dtype == base.dtype else None
        found.append(mine)
    # A ratio to a row that did not make its tokens is none either.
    if found and base is not None and found[rows.index(base)]["tokens_a_sample"] != [tokens, tokens]:
        for mine in found:
            mine["ratios"] |= {"stock": None, "stock_cpu": None, "stock_command": None}
    return found


def _figures(row: Entry, runs: Sequence[Measurement]) -> dict[str, Any]:
    samples = len(runs[0].outputs)
    counts = [count for run in runs for count, _ in run.outputs.values()]
    parts = {part: median(run.parts[part] for run in runs) for part in PARTS}
    limit = max(parts, key=parts.get)
    rates = [60 * samples / run.phase for run in runs]
    return {
        "name": row.name,
        "batch": row.batch,
        "dtype": row.dtype,
        "attention": runs[0].attention,
        "samples_per_minute": median(rates),
        "samples_per_minute_rounds": rates,
        "command_samples_per_minute": median(60 * samples / run.command for run in runs),
        "tokens_per_second": median(run.tokens / run.phase for run in runs),
        "tokens_a_sample": [min(counts), max(counts)],
        "seconds": {
            "command": median(run.command for run in runs),
            "loading": median(run.loading for run in runs),
            "phase": median(run.phase for run in runs),
            "scoring": median(run.command - run.loading - run.phase for run in runs),
            "cpu": median(run.cpu for run in runs),
            "reading_in_background": median(run.background for run in runs),
            **parts,
        },
        "readings": runs[0].readings,
        "vision_runs": runs[0].vision_runs,
        "peak_bytes": max(run.peak_bytes for run in runs),
        "limit": {"part": limit, "share": parts[limit] / sum(parts.values())},
    }


def _ratios(
    mine: Sequence[Measurement], base: Sequence[Measurement] | None, what: str, sound: bool
) -> dict[str, float] | None:
    """How many times as fast, round by round: the median, the lowest and the highest."""
    if not sound or not base:
        return None
    ratios = [getattr(b, what) / getattr(m, what) for m, b in zip(mine, base, strict=True)]
    return {"median": median(ratios), "lowest": min(ratios), "highest": max(ratios)}


def _same(mine: Sequence[Measurement], base: Sequence[Measurement] | None) -> int | None:
    if not base:
        return None
    return sum(text == base[0].outputs[doc][1] for doc, (_, text) in mine[0].outputs.items())


def delays(
    rows: Sequence[Entry],
    measured: Mapping[Entry, Sequence[Measurement]],
    delayed: Mapping[Entry, Sequence[tuple[float, Measurement]]],
) -> list[dict[str, Any]]:
    """One record a row whose reading was slowed: how much longer generation took, medians over the rounds."""
    found = []
    for row in rows:
        pairs = list(zip(measured[row], delayed[row], strict=False))
        if not pairs:
            continue
        growths = [slow.phase / plain.phase - 1 for plain, (_, slow) in pairs]
        found.append(
            {
                "name": row.name,
                "batch": row.batch,
                "dtype": row.dtype,
                "readings": pairs[0][1][1].readings,
                "delay": median(delay for _, (delay, _) in pairs),
                "seconds": median(plain.phase for plain, _ in pairs),
                "delayed_seconds": median(slow.phase for _, (_, slow) in pairs),
                "growth": median(growths),
                "growth_spread": [min(growths), max(growths)],
                # Nothing has been generated yet that could go on while the first video is read.
                "growth_of_the_first": median(delay / plain.phase for plain, (delay, _) in pairs),
            }
        )
    return found


def show(report: dict[str, Any]) -> None:
    """Prints what was run, where, and the tables."""
    shape, settings, where = report["shape"], report["settings"], report["machine"]
    videos, questions = settings["videos"], settings["questions"]
    on_cpu = where["device"] == "cpu"
    print(
        f"shape {shape['name']}: {shape['layers']} layers of width {shape['hidden_size']}; {videos} videos x "
        f"{questions} questions, {report['video_tokens']} video tokens, {settings['tokens']} new tokens a sample\n"
        f"{where['cpu'] if on_cpu else where['device']}, {settings['threads']} thread(s); torch {where['torch']}, "
        f"transformers {where['transformers']}, lmms-eval {where['lmms_eval']}, Python {where['python']}; "
        f"{settings['attention']}\n"
        f"medians of {settings['rounds']} interleaved rounds [lowest, highest]; ratios are of samples a minute while "
        "answers are generated (generate_until), to the same round's run\n"
    )
    _print_table(*_speed_table(report["rows"], on_cpu))
    print("\nSeconds of a run, by what they went into:\n")
    _print_table(*_time_table(report["rows"]))
    if report["delays"]:
        print("\nReading slowed by a delay before each video:\n")
        _print_table(*_delay_table(report["delays"]))


def _speed_table(rows: Sequence[dict[str, Any]], on_cpu: bool) -> tuple[list[str], list[list[str]]]:
    cpu = ["by CPU time"] if on_cpu else []
    head = ["run", "dtype", "batch", "samples/min", "x stock", *cpu, "x policy=off", *cpu]
    head += ["tokens/s", "whole command, samples/min", "x stock", "peak MB", "answers as stock", "limited by"]
    table = []
    for row in rows:
        ratios, limit = row["ratios"], row["limit"]
        low, high = row["tokens_a_sample"]
        made = f"{low} to {high} tokens a sample: no ratio"
        table.append(
            [
                *(row["name"], row["dtype"], str(row["batch"]), f"{row['samples_per_minute']:.1f}"),
                _ratio(ratios["stock"]) if ratios["stock"] or low == high else made,
                *([_ratio(ratios["stock_cpu"], spread=False)] if on_cpu else []),
                _ratio(ratios["off"]),
                *([_ratio(ratios["off_cpu"], spread=False)] if on_cpu else []),
                *(f"{row['tokens_per_second']:.1f}", f"{row['command_samples_per_minute']:.1f}"),
                _ratio(ratios["stock_command"], spread=False),
                f"{row['peak_bytes'] / 1e6:.0f}",
                "" if row["same_answers"] is None else str(row["same_answers"]),
                f"{_WORDS[limit['part']]}, {limit['share']:.0%}",
            ]
        )
    return head, table


def _ratio(ratio: dict[str, float] | None, *, spread: bool = True) -> str:
    if ratio is None:
        return ""
    words = f"{ratio['median']:.2f}"
    return f"{words} [{ratio['lowest']:.2f}, {ratio['highest']:.2f}]" if spread else words


def _time_table(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    head = ["run", "dtype", "batch", "imports and loading", *(_WORDS[part] for part in PARTS), "scoring and the end"]
    head += ["videos read", "of it in the background, s", "vision tower runs"]
    table = []
    for row in rows:
        seconds = row["seconds"]
        shown = [seconds[name] for name in ("loading", *PARTS, "scoring")]
        table.append(
            [
                *(row["name"], row["dtype"], str(row["batch"]), *(f"{value:.2f}" for value in shown)),
                *(str(row["readings"]), f"{seconds['reading_in_background']:.2f}", str(row["vision_runs"])),
            ]
        )
    return head, table


def _delay_table(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    head = ["run", "dtype", "batch", "videos read", "delay, s", "seconds without", "with", "longer by"]
    head += ["of which the first video, which nothing can hide"]
    table = []
    for row in rows:
        low, high = row["growth_spread"]
        table.append(
            [
                *(row["name"], row["dtype"], str(row["batch"]), str(row["readings"]), f"{row['delay']:.2f}"),
                *(f"{row['seconds']:.1f}", f"{row['delayed_seconds']:.1f}"),
                f"{row['growth']:.1%} [{low:.1%}, {high:.1%}]",
                f"{row['growth_of_the_first']:.1%}",
            ]
        )
    return head, table


def _print_table(head: list[str], rows: list[list[str]]) -> None:
    lines = [head, [":--", *["--:"] * (len(head) - 1)], *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |")
