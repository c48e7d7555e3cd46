"""Journals as tables: read by pyarrow, since thirty thousand traces are gigabytes of JSON."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.json

from lmms_eval_vreason.journal.files import FOLDER, check_version, samples_files, with_trace
from lmms_eval_vreason.journal.summary import overhead

_BLOCK = 4 << 20  # bytes a block of the parser; a line must fit into it
TRACES = 2000
_FLOATS = pa.list_(pa.float32())
_CHANGE = pa.struct({"updates": pa.int64(), "entropy_change": pa.float64()})
_TRACE = pa.struct(
    {
        **dict.fromkeys(("entropy", "ema", "alpha", "entropy_change", "shift"), _FLOATS),
        "updates": pa.int64(),
        "peak_index": pa.int64(),
        "video_tokens": pa.int64(),
        "last_shift": pa.float64(),
        "lowering": _CHANGE,
        "raising": _CHANGE,
        "note": pa.string(),
    }
)
_SCHEMA = pa.schema(
    {
        "kind": pa.string(),
        "run": pa.string(),
        "key": pa.string(),
        "task": pa.string(),
        "doc_id": pa.int64(),
        "prompt": pa.string(),
        "media": pa.list_(pa.string()),
        "thinking_cut": pa.bool_(),
        "answer_cut": pa.bool_(),
        "tokens": pa.struct({name: pa.int64() for name in ("input", "output", "thinking")}),
        "seconds": pa.struct({name: pa.float64() for name in ("read", "generate", "ordinary", "due")}),
        "peak_memory_bytes": pa.int64(),
        "trace": _TRACE,
        "error": pa.struct({"type": pa.string(), "message": pa.string()}),
    }
)


@dataclass(frozen=True)
class Curve:
    """A quantity against the token index, averaged over samples.

    Attributes:
        mean, error: (tokens,) mean and standard error of the mean.
        samples: (tokens,) samples that reach the token.
    """

    mean: np.ndarray
    error: np.ndarray
    samples: np.ndarray


def find_journals(run: Path, given: str | None = None) -> list[Path]:
    """Journal files of a run: in the folder of its argument ``journal``, else in ``vreason_journal/`` beside it.

    Args:
        run: a folder, or a file in it; the folders above are looked through as well.
        given: the run's own ``journal=`` argument.
    """
    if given and Path(given).expanduser().is_dir():
        return samples_files(Path(given).expanduser())
    start = run if run.is_dir() else run.parent
    for folder in (start, *list(start.parents)[:2]):
        found = samples_files(folder / FOLDER)
        if found:
            return found
    return [file for folder in sorted(start.glob(f"*/{FOLDER}")) for file in samples_files(folder)]


def run_header(path: Path) -> dict | None:
    """The first line of kind ``run``; None when the file has none."""
    with path.open(encoding="utf-8", errors="replace") as file:
        try:
            record = json.loads(file.readline() or "null")
        except json.JSONDecodeError:
            return None
    if not isinstance(record, dict) or record.get("kind") != "run":
        return None
    check_version(path, record)
    return record


def read_journal(paths: list[Path], notices: list[str], traces: int = TRACES) -> pa.Table:
    """The samples of journal files as one Arrow table; the last line of a key counts.

    Args:
        paths: the files of one run, one a process.
        notices: receives one sentence a finding.
        traces: about how many samples get their traces' arrays, evenly spaced. Figures need no more, and reading
            every number takes most of the time.
    """
    stride = max(1, sum(map(_count_lines, paths)) // max(traces, 1))
    tables = [_parse(_lines(path, stride, notices), path, notices) for path in paths]
    table = pa.concat_tables(tables) if tables else _SCHEMA.empty_table()
    kinds = pa.compute.equal(table["kind"], "sample")
    table = table.filter(pa.compute.fill_null(kinds, False))
    keys = pd.Series(table["key"].to_numpy(zero_copy_only=False))
    return table.take(np.flatnonzero(~keys.duplicated(keep="last").to_numpy()))


def with_arrays(table: pa.Table) -> pa.Table:
    """The samples whose traces' arrays were kept."""
    return table.filter(pa.compute.struct_field(table["trace"], "entropy").is_valid())


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(_BLOCK), b""))


def _lines(path: Path, stride: int, notices: list[str]) -> list[bytes]:
    """The file's whole lines, with the trace's arrays in every ``stride``-th."""
    lines = []
    with path.open("rb") as file:
        for number, line in enumerate(file):
            if not line.endswith(b"\n"):
                notices.append(f"{path.name}: the last line is half-written (a killed run) and was left out")
            elif number % stride:
                lines.append(line)
            else:
                lines.append(_with_arrays(path, line))
    return lines


def _with_arrays(path: Path, line: bytes) -> bytes:
    try:
        record = json.loads(line)
    except ValueError:
        return line
    return json.dumps(with_trace(path, record)).encode() + b"\n" if isinstance(record, dict) else line


def _parse(lines: list[bytes], path: Path, notices: list[str]) -> pa.Table:
    if not lines:
        return _SCHEMA.empty_table()
    options = pa.json.ParseOptions(explicit_schema=_SCHEMA, unexpected_field_behavior="ignore")
    try:
        return pa.json.read_json(pa.BufferReader(b"".join(lines)), pa.json.ReadOptions(block_size=_BLOCK), options)
    except pa.ArrowInvalid as error:
        good = [line for line in lines if _is_object(line)]
        if len(good) == len(lines):
            raise ValueError(f"{path} is not a journal of this package: {error}") from error
        notices.append(f"{path.name}: {len(lines) - len(good)} lines are not JSON and were left out")
        return _parse(good, path, notices)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return False


def sample_frame(table: pa.Table) -> pd.DataFrame:
    """One row a sample, without the traces' arrays.

    Columns: task, doc_id, prompt, video, cut, input_tokens, output_tokens, thinking_tokens, seconds_read,
    seconds_generate, seconds_ordinary, seconds_due, peak_memory, failed, traced, updates, video_tokens, peak_index,
    note.
    """
    flat = table.select(["task", "doc_id", "prompt"]).to_pandas()
    media = table["media"].combine_chunks()
    flat["video"] = pa.compute.list_element(media, 0).to_pandas() if _all_filled(media) else _first_items(media)
    flat["cut"] = _column(table, "thinking_cut") | _column(table, "answer_cut")
    for group, names in (
        ("tokens", ("input", "output", "thinking")),
        ("seconds", ("read", "generate", "ordinary", "due")),
    ):
        for name in names:
            column = f"{name}_tokens" if group == "tokens" else f"seconds_{name}"
            flat[column] = _field(table, group, name).to_pandas().astype(float)
    flat["peak_memory"] = table["peak_memory_bytes"].to_pandas().astype(float)
    flat["failed"] = table["error"].is_valid().to_pandas()
    flat["traced"] = table["trace"].is_valid().to_pandas()
    for name in ("updates", "video_tokens", "peak_index"):
        flat[name] = _field(table, "trace", name).to_pandas().astype(float)
    flat["note"] = _field(table, "trace", "note").to_pandas()
    return flat


def _field(table: pa.Table, group: str, name: str) -> pa.ChunkedArray:
    return pa.compute.struct_field(table[group], name)


def _column(table: pa.Table, name: str) -> pd.Series:
    return pa.compute.fill_null(table[name], False).to_pandas().astype(bool)


def _all_filled(media: pa.ListArray) -> bool:
    lengths = pa.compute.list_value_length(media)
    return len(media) > 0 and media.null_count == 0 and pa.compute.min(lengths).as_py() > 0


def _first_items(media: pa.ListArray) -> list[str | None]:
    return [items[0] if items else None for items in media.to_pylist()]


def steering_facts(table: pa.Table) -> dict:
    """The facts of ``summary.steering_facts``, from a journal's table; ΔH and shift over samples with arrays kept."""
    frame = sample_frame(table)
    finished, traced = ~frame["failed"], frame["traced"] & ~frame["failed"]
    kept = with_arrays(table)
    changes, alpha = trace_arrays(kept, "entropy_change")[0], trace_arrays(kept, "alpha")[0]
    shifts, _, owner = trace_arrays(kept, "shift")
    last = np.flatnonzero(np.diff(owner, append=-1))
    moved = sample_frame(kept)["updates"].fillna(0).to_numpy()[owner[last]] > 0
    timed = frame[traced & frame[["seconds_ordinary", "seconds_due"]].notna().all(axis=1)]
    ordinary = (timed["output_tokens"] - 1 - timed["updates"]).clip(lower=0)
    notes = frame.loc[traced & frame["note"].fillna("").ne(""), "note"].value_counts().to_dict()
    untraced = int((finished & ~frame["traced"]).sum())
    return {
        "samples": len(frame),
        "failed": int(frame["failed"].sum()),
        "steered": int((frame.loc[traced, "updates"] > 0).sum()),
        "updates": int(frame.loc[traced, "updates"].sum()),
        "entropy_change": _mean(changes),
        "entropy_change_lowering": _mean(changes[alpha < 0]),
        "entropy_change_raising": _mean(changes[alpha > 0]),
        "shift": _mean(shifts[last][moved]),
        "without_video": float((frame.loc[traced, "video_tokens"] == 0).mean()) if traced.any() else None,
        "overhead": overhead(
            {"ordinary": int(ordinary.sum()), "due": int(timed["updates"].sum())},
            {kind: float(timed[f"seconds_{kind}"].sum()) for kind in ("ordinary", "due")},
        ),
        "notes": notes | ({"no trace was kept": untraced} if untraced else {}),
    }


def _mean(values: np.ndarray) -> float | None:
    return float(np.nanmean(values)) if np.isfinite(values).any() else None


def trace_arrays(table: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A trace column, flat.

    Returns:
        values (n,), the token index of each (n,), and the sample's row in ``table`` of each (n,); nulls are nan.
    """
    lists = pa.compute.struct_field(table["trace"].combine_chunks(), name)
    lengths = pa.compute.fill_null(pa.compute.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    values = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    return values, np.arange(len(values)) - starts, rows


def curve(table: pa.Table, name: str, least: int | None = None) -> Curve:
    """Mean of a trace column at each token index, over the samples that reach it.

    Args:
        table: from :func:`read_journal`.
        name: the trace's column, as ``entropy``.
        least: stop at the token that fewer samples than this reach, since a mean of a few late samples misleads;
            by default 5% of the samples, and two.
    """
    least = max(2, len(table) // 20) if least is None else least
    values, tokens, _ = trace_arrays(table, name)
    known = np.isfinite(values)
    values, tokens = values[known], tokens[known]
    count = np.bincount(tokens)
    reached = count >= least
    end = int(np.argmin(reached)) if not reached.all() else len(count)
    count = count[:end]
    if not end:
        return Curve(*(np.zeros(0) for _ in range(3)))
    mean = np.bincount(tokens, values)[:end] / count
    square = np.bincount(tokens, values**2)[:end] / count
    variance = np.maximum(square - mean**2, 0) * count / np.maximum(count - 1, 1)
    return Curve(mean, np.sqrt(variance / count), count)
