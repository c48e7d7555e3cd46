"""Journals as data frames: one row a sample, and one row a generated token of the samples whose traces are read."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lmms_eval_vreason.journal.files import FOLDER, check_version, counts_over, samples_files, with_trace
from lmms_eval_vreason.journal.summary import SteeringFacts, steering_facts
from lmms_eval_vreason.report.files import read_json_lines

TRACES = 2000
_TRACE = ("entropy", "ema", "peak", "alpha", "entropy_change", "shift", "changed")
_SAMPLE = ["task", "doc_id", "prompt", "video", "cut", "output_tokens", "thinking_tokens", "seconds", "peak_memory"]


@dataclass(frozen=True)
class JournalTables:
    """What the journal of one run holds.

    Attributes:
        samples: one row a sample. Columns: task, doc_id, prompt, video, cut, output_tokens, thinking_tokens, seconds
            (generation), peak_memory (bytes).
        tokens: indexed by sample (the row in ``samples``) and token (from 1). Columns are the trace's (nan where it has
            none) and ``chosen_from``: the entropy of the distribution that the token was chosen from, nats.
        facts: whether the run was steered; None where the journal holds none of the wanted samples.
    """

    samples: pd.DataFrame
    tokens: pd.DataFrame
    facts: SteeringFacts | None


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


def read_journal(
    paths: Sequence[Path],
    method: Mapping[str, Any],
    notices: list[str],
    tasks: Collection[str] | None = None,
    traces: int = TRACES,
) -> JournalTables:
    """The samples of a run's journal files; the last line of a key counts.

    Args:
        paths: the files of one run, one a process.
        method: the run's hyperparameters, from the journal's first line.
        notices: receives one sentence a finding.
        tasks: whose samples are wanted (None: all).
        traces: about how many samples' traces to read, evenly spaced. Figures need no more, and reading them all takes
            most of the time.
    """
    newest: dict[str, tuple[Path, dict[str, Any]]] = {}
    for path in paths:
        for line in read_json_lines(path, notices):
            if line.get("kind") == "sample" and (tasks is None or line["task"] in tasks):
                _, earlier = newest.get(line["key"], (path, None))
                if counts_over(line, earlier):
                    newest.pop(line["key"], None)  # the last line also gives the place
                    newest[line["key"]] = (path, line)
    found = list(newest.values())
    samples = pd.DataFrame([_sample(line) for _, line in found], columns=_SAMPLE)
    stride = max(1, len(found) // max(traces, 1))
    traced = {row: with_trace(*found[row])["trace"] or {} for row in range(0, len(found), stride)}
    tokens = trace_frame({row: trace for row, trace in traced.items() if trace.get("entropy")})
    facts = steering_facts((line for _, line in found), policy=method["policy"])
    return JournalTables(samples, tokens, facts if found else None)


def _sample(line: Mapping[str, Any]) -> dict[str, Any]:
    tokens, media = line.get("tokens") or {}, line.get("media") or [None]
    return {
        "task": line["task"],
        "doc_id": line["doc_id"],
        "prompt": line["prompt"].strip(),
        "video": media[0],
        "cut": bool(line.get("thinking_cut") or line.get("answer_cut")),
        "output_tokens": tokens.get("output"),
        "thinking_tokens": tokens.get("thinking"),
        "seconds": (line.get("seconds") or {}).get("generate"),
        "peak_memory": line.get("peak_memory_bytes"),
    }


def trace_frame(traces: Mapping[int, Mapping[str, Any]]) -> pd.DataFrame:
    """The ``tokens`` of :class:`JournalTables`, of each sample's trace; empty without a trace."""
    if not traces:
        return pd.DataFrame()
    lengths = {sample: len(trace["entropy"]) for sample, trace in traces.items()}
    places = [(sample, token) for sample, length in lengths.items() for token in range(1, length + 1)]
    index = pd.MultiIndex.from_tuples(places, names=["sample", "token"])
    columns = {
        name: [np.array(trace.get(name, [None] * lengths[sample]), dtype=float) for sample, trace in traces.items()]
        for name in _TRACE
    }
    frame = pd.DataFrame({name: np.concatenate(parts) for name, parts in columns.items()}, index=index)
    # An update acts on the token that is then chosen.
    return frame.assign(chosen_from=frame["entropy"] + frame["entropy_change"].fillna(0.0))


def entropy_figures(tokens: pd.DataFrame) -> dict[str, float]:
    """What updates did to the entropy, over all tokens of a run's traces; nan where no update was refreshed.

    Args:
        tokens: of one :class:`JournalTables`, or of several, concatenated under a further index level.

    Returns:
        ``chosen_from``: the mean entropy that tokens were chosen from, nats. ``entropy_change_percent``: mean |ΔH| in
        percent of the mean entropy of the same tokens before the update. ``changed_percent``: share of updates that
        changed the likeliest token. ``peak_token`` and ``peak``: medians over samples of where the moving average is
        highest, and of how high, nats.
    """
    updated, highest = tokens[tokens["entropy_change"].notna()], peaks(tokens)
    return {
        "chosen_from": tokens["chosen_from"].mean(),
        "entropy_change_percent": 100 * updated["entropy_change"].abs().mean() / updated["entropy"].mean(),
        "changed_percent": 100 * tokens["changed"].mean(),
        "peak_token": highest["token"].median(),
        "peak": highest["ema"].median(),
    }


def peaks(tokens: pd.DataFrame) -> pd.DataFrame:
    """One row a traced sample: ``token`` (from 1) at which the moving average peaks, and ``ema`` there, nats."""
    known = tokens["ema"].dropna()
    return known.loc[known.groupby(level=list(range(known.index.nlevels - 1))).idxmax()].reset_index()[["token", "ema"]]


def curve(tokens: pd.DataFrame, name: str, least: int | None = None) -> pd.DataFrame:
    """Mean of a trace column at each token, over the samples that reach it.

    Args:
        tokens: of :class:`JournalTables`.
        name: the column, as ``chosen_from``.
        least: stop at the token that fewer samples than this reach, since a mean of a few late samples misleads;
            by default 5% of the samples, and two.

    Returns:
        ``mean``, its standard error ``sem`` and ``count`` of samples, indexed by token.
    """
    found = tokens[name].groupby(level="token").agg(["mean", "sem", "count"]).fillna({"sem": 0.0})
    least = max(2, found["count"].max() // 20) if least is None else least
    return found[found["count"].ge(least).cummin()]
