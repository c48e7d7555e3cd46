"""Journals as Arrow tables, since thirty thousand traces are gigabytes of JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from lmms_eval_vreason.journal.files import FOLDER, check_version, samples_files, with_trace
from lmms_eval_vreason.journal.summary import SteeringFacts, steering_facts
from lmms_eval_vreason.report.files import read_json_lines
from lmms_eval_vreason.report.statistics import Array

TRACES = 2000
_CHANGE = pa.struct({"updates": pa.int64(), "entropy_change": pa.float64()})
_TRACE = {
    **dict.fromkeys(("entropy", "ema", "alpha", "entropy_change", "shift"), pa.list_(pa.float32())),
    **dict.fromkeys(("updates", "peak_index", "video_tokens"), pa.int64()),
    **dict.fromkeys(("lowering", "raising"), _CHANGE),
    "last_shift": pa.float64(),
    "note": pa.string(),
}
_SCHEMA = pa.schema(
    {
        **dict.fromkeys(("task", "prompt"), pa.string()),
        "doc_id": pa.int64(),
        "media": pa.list_(pa.string()),
        **dict.fromkeys(("thinking_cut", "answer_cut"), pa.bool_()),
        "tokens": pa.struct(dict.fromkeys(("input", "output", "thinking"), pa.int64())),
        "seconds": pa.struct(dict.fromkeys(("generate", "ordinary", "due"), pa.float64())),
        "peak_memory_bytes": pa.int64(),
        "trace": pa.struct(_TRACE),
        "error": pa.struct(dict.fromkeys(("type", "message"), pa.string())),
    }
)
# Field of a journal line → column of :func:`sample_frame`.
_COLUMNS = {
    "task": "task",
    "doc_id": "doc_id",
    "prompt": "prompt",
    "tokens.input": "input_tokens",
    "tokens.output": "output_tokens",
    "tokens.thinking": "thinking_tokens",
    "seconds.generate": "seconds",
    "peak_memory_bytes": "peak_memory",
    "trace.updates": "updates",
}


@dataclass(frozen=True)
class Curve:
    """A quantity against the token index, averaged over samples.

    Attributes:
        mean, error: (tokens,) mean and standard error of the mean.
        samples: (tokens,) samples that reach the token.
    """

    mean: Array
    error: Array
    samples: Array


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
        if found := samples_files(folder / FOLDER):
            return found
    return [file for folder in sorted(start.glob(f"*/{FOLDER}")) for file in samples_files(folder)]


def run_header(path: Path) -> dict[str, Any] | None:
    """The first line of kind ``run``; None when the file has none."""
    record = next(read_json_lines(path, []), {})
    if record.get("kind") != "run":
        return None
    check_version(path, record)
    return record


def read_journal(paths: Sequence[Path], notices: list[str], traces: int = TRACES) -> pa.Table:
    """The samples of journal files as one Arrow table; the last line of a key counts.

    Args:
        paths: the files of one run, one a process.
        notices: receives one sentence a finding.
        traces: about how many samples get their traces' arrays, evenly spaced. Figures need no more, and reading
            every number takes most of the time.
    """
    lines = ((path, line) for path in paths for line in read_json_lines(path, notices))
    samples = [(path, line) for path, line in lines if line.get("kind") == "sample"]
    newest = {line["key"]: place for place, (_, line) in enumerate(samples)}
    stride = max(1, len(newest) // max(traces, 1))
    kept = (samples[place] for place in sorted(newest.values()))
    rows = (line if place % stride else with_trace(path, line) for place, (path, line) in enumerate(kept))
    # A few at a time: Python's objects of all traces at once would fill the memory.
    batches = [pa.RecordBatch.from_pylist(some, schema=_SCHEMA) for some in iter(lambda: list(islice(rows, 50)), [])]
    return pa.Table.from_batches(batches, schema=_SCHEMA).combine_chunks()


def with_arrays(table: pa.Table) -> pa.Table:
    """The samples whose traces' arrays were kept."""
    return table.filter(pc.struct_field(table["trace"], "entropy").is_valid())


def sample_frame(table: pa.Table) -> pd.DataFrame:
    """One row a sample, without the traces' arrays.

    Columns: task, doc_id, prompt, video, cut, input_tokens, output_tokens, thinking_tokens, seconds (generation),
    peak_memory (bytes), failed, updates.
    """
    frame: pd.DataFrame = table.flatten().select(list(_COLUMNS)).rename_columns(list(_COLUMNS.values())).to_pandas()
    numbers = [name for name in frame.columns if name not in ("task", "doc_id", "prompt")]
    frame[numbers] = frame[numbers].astype(float)
    frame["video"] = [media[0] if media else None for media in table["media"].to_pylist()]
    cut = pc.or_(*(pc.fill_null(table[name], False) for name in ("thinking_cut", "answer_cut")))
    return frame.assign(cut=cut.to_pandas(), failed=table["error"].is_valid().to_pandas())


def journal_facts(table: pa.Table, method: Mapping[str, Any]) -> SteeringFacts:
    """:func:`steering_facts` of a journal's table.

    Args:
        table: from :func:`read_journal`.
        method: the run's hyperparameters, from the journal's first line.
    """
    records = table.select(["tokens", "seconds", "trace", "error"]).to_pylist()
    return steering_facts(records, policy=method["policy"])


def trace_arrays(table: pa.Table, name: str) -> tuple[Array, Array, Array]:
    """A trace column, flat.

    Returns:
        values (n,), the token index of each (n,), and the sample's row in ``table`` of each (n,); nulls are nan.
    """
    lists = pc.struct_field(table["trace"].combine_chunks(), name)
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
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
    grouped = pd.Series(values).groupby(tokens)
    count = grouped.count().to_numpy()
    reached = count >= least
    end = len(count) if reached.all() else int(np.argmin(reached))
    error = grouped.sem().fillna(0.0)
    return Curve(grouped.mean().to_numpy()[:end], error.to_numpy()[:end], count[:end])
