"""A run: one lmms-eval output, whatever model wrote it, as a table of samples with the journal's figures beside."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
from pandas.util import hash_array

from lmms_eval_vreason.report import journals
from lmms_eval_vreason.report.catalogue import benchmark_of, part_of
from lmms_eval_vreason.report.folders import SamplesFile, find_samples, parse_run
from lmms_eval_vreason.report.reading import read_json, read_json_lines
from lmms_eval_vreason.report.scores import answer_of, score_of, scored_with_tags, unfinished, video_of

KEY = ["row", "part", "doc_id"]
_COLUMNS = (
    *("row", "part", "task", "doc_id", "score", "metric", "video", "prompt"),
    *("input_tokens", "output_tokens", "thinking_tokens", "answered", "cut"),
)


@dataclass(frozen=True)
class Run:
    """One run, read.

    Attributes:
        label: what the report calls it; several runs (seeds) may share one.
        path: as the user gave it.
        samples: one row a sample. Columns: row (the table's row), part and doc_id (which document), task, score,
            metric, video, prompt (hash of the text as sent), input_tokens, output_tokens, thinking_tokens, answered,
            cut, seconds, peak_memory, failed, updates.
        settings: what the results file says of the run: model, model_args, gen_kwargs, limit, seeds, date
        journal: the journal's samples as an Arrow table, or None.
        notices: what the reader should know about the files.
        warnings: what makes the run's scores unfit for a comparison.
    """

    label: str
    path: Path
    samples: pd.DataFrame
    settings: dict[str, Any]
    journal: pa.Table | None
    notices: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read_run(argument: str) -> Run:
    """Reads one run.

    Args:
        argument: ``[label=]path[#tasks]``; an output folder, a results file or a samples file of lmms-eval.

    Raises:
        ValueError: nothing to read there, or more than one model's run; the message says what to name instead.
    """
    label, path, pattern = parse_run(argument)
    notices: list[str] = []
    warnings: list[str] = []
    files = find_samples(path, notices, pattern)
    results = {file.results: read_json(file.results) for file in files if file.results}
    frames = []
    for file in files:
        content = results.get(file.results, {})
        frame = _read_samples(file, content, notices, warnings)
        _note_other_aggregate(frame, file.task, content, notices)
        frames.append(frame)
    samples = pd.concat(frames, ignore_index=True)
    if samples.empty:
        raise ValueError(f"{path} holds no sample with a numeric score")
    _refuse_twins(path, samples)
    newest = results[max(results)] if results else {}
    journal = _matching_journal(path, newest, notices)
    if journal is not None:
        journal = journal.filter(pa.compute.is_in(journal["task"], pa.array(samples["task"].unique())))
    samples = _with_journal(samples, journal)
    return Run(label, path, samples, _settings(newest), journal, notices, warnings)


def _refuse_twins(path: Path, samples: pd.DataFrame) -> None:
    """A run of a benchmark under two prompts has two answers to each document: the user must say which to take."""
    tasks = samples.groupby(["row", "part"])["task"].unique()
    for names in tasks[tasks.map(len) > 1]:
        raise ValueError(
            f"{path}: tasks {', '.join(sorted(names))} ask about the same documents; choose with a pattern of task "
            f"names, as {path}#{min(names, key=len)}"
        )


def _read_samples(
    file: SamplesFile, results: Mapping[str, Any], notices: list[str], warnings: list[str]
) -> pd.DataFrame:
    config = results.get("configs", {}).get(file.task, {})
    metrics = [metric["metric"] for metric in config.get("metric_list") or [] if isinstance(metric.get("metric"), str)]
    benchmark = benchmark_of(file.task, results.get("group_subtasks", {}))
    part, limit = part_of(file.task), _token_limit(config, results.get("config", {}))
    rows, unscored, tagged = [], 0, 0
    for sample in read_json_lines(file.path, notices):
        scored = score_of(sample, file.task, benchmark, metrics)
        if scored is None or "doc_id" not in sample:
            unscored += 1
            continue
        row, metric, score = scored
        tokens = _token_counts(sample)
        cut = unfinished(sample) or (limit is not None and tokens[1] is not None and tokens[1] >= limit)
        prompt = str(sample.get("input", ""))
        document = (row, part, file.task, int(sample["doc_id"]), score, metric, video_of(sample), prompt)
        answer = answer_of(sample)
        tagged += scored_with_tags(sample)
        rows.append((*document, *tokens, bool(answer), cut))
    frame = pd.DataFrame(rows, columns=_COLUMNS)
    if unscored:
        notices.append(f"{file.path.name}: {unscored} samples have no numeric score and were left out")
    if tagged:
        warnings.append(
            f"{file.task}: {tagged} answers were scored with their <answer> tags around them, which tasks that look "
            "for the bare letter count as wrong"
        )
    return _without_duplicates(frame, file, notices)


def _without_duplicates(frame: pd.DataFrame, file: SamplesFile, notices: list[str]) -> pd.DataFrame:
    repeated = int(frame.duplicated(KEY, keep="last").sum())
    if repeated:
        notices.append(
            f"{file.path.name}: {repeated} doc_ids stand there more than once (several filters, or two runs that ended "
            "in the same second and wrote into one file); the last of each counts"
        )
        frame = frame.drop_duplicates(KEY, keep="last")
    frame["prompt"] = prompt_hash(frame["prompt"])
    for column in ("input_tokens", "output_tokens", "thinking_tokens"):
        frame[column] = frame[column].astype(float)
    return frame


def prompt_hash(prompts: pd.Series) -> pd.Series:
    """53-bit hashes of texts, blank margins aside: enough to tell whether two runs sent the same prompt.

    53 bits survive the float column that a join with missing rows makes of them.
    """
    hashes = hash_array(prompts.str.strip().to_numpy(dtype=object), categorize=False)
    return pd.Series((hashes >> np.uint64(11)).astype(np.int64), index=prompts.index)


def _token_counts(sample: Mapping[str, Any]) -> tuple[float | None, float | None, float | None]:
    counts = [count for count in sample.get("token_counts") or [] if count]
    means = []
    for name in ("input_tokens", "output_tokens", "reasoning_tokens"):
        known = [count[name] for count in counts if count.get(name) is not None]
        means.append(sum(known) / len(known) if known else None)
    return tuple(means)


def _token_limit(task: Mapping[str, Any], config: Mapping[str, Any]) -> int | None:
    given = re.search(r"max_new_tokens['\"]?\s*[=:]\s*(\d+)", str(config.get("gen_kwargs") or ""))
    limit = given[1] if given else (task.get("generation_kwargs") or {}).get("max_new_tokens")
    return int(limit) if limit is not None else None


def _note_other_aggregate(frame: pd.DataFrame, task: str, results: Mapping[str, Any], notices: list[str]) -> None:
    """Says where lmms-eval's own figure is not the mean over samples (MVBench leaves unanswered questions out)."""
    if frame.empty:
        return
    mean = frame["score"].mean()
    for key, value in results.get("results", {}).get(task, {}).items():
        if key.split(",")[0] != frame["metric"].iat[0] or not isinstance(value, int | float):
            continue
        if min(abs(value - mean), abs(value - 100 * mean)) > 5e-4 * max(1.0, abs(value)):
            notices.append(f"{task}: lmms-eval reports {value:.4g}, the mean over all samples is {mean:.4g}; it counts")


def _settings(results: Mapping[str, Any]) -> dict[str, Any]:
    config = results.get("config", {})
    names = ("model", "model_args", "gen_kwargs", "batch_size", "limit", "random_seed", "torch_seed")
    settings = {name: config.get(name) for name in names if config.get(name) not in (None, "", {})}
    return settings | ({"date": results["date"]} if "date" in results else {})


def _matching_journal(path: Path, results: Mapping[str, Any], notices: list[str]) -> pa.Table | None:
    model_args = results.get("config", {}).get("model_args")
    found = journals.find_journals(path, _as_given(model_args).get("journal"))
    if not found:
        return None
    wanted = arguments(model_args)
    headers = {file: journals.run_header(file) for file in found}
    matching = [
        file
        for file, header in headers.items()
        if header and (not results or wanted.items() <= arguments(header.get("model_args")).items())
    ]
    if not matching:
        notices.append(f"{found[0].parent}: no journal there was written with this run's model arguments")
        return None
    return journals.read_journal(sorted(matching, key=lambda file: headers[file].get("started", "")), notices)


def arguments(given: Any) -> dict[str, str]:
    """Model arguments, a string or a mapping, in one form that compares: ``0.010`` and 0.01 are the same."""
    return {name: _plain(value) for name, value in _as_given(given).items()}


def _as_given(given: Any) -> dict[str, Any]:
    if isinstance(given, str):
        given = dict(part.split("=", 1) for part in re.split(r",(?=[^,=]+=)", given) if "=" in part)
    return {name.strip(): value for name, value in (given or {}).items()}


def _plain(value: Any) -> str:
    text = str(value).strip().lower()
    try:
        return repr(float(text))
    except ValueError:
        return text


def _with_journal(samples: pd.DataFrame, journal: pa.Table | None) -> pd.DataFrame:
    """Adds the journal's columns; where both know a thing, the journal does (it saw the prompt as sent)."""
    if journal is None:
        return samples.assign(seconds=float("nan"), peak_memory=float("nan"), failed=False, updates=float("nan"))
    frame = journals.sample_frame(journal)
    frame["prompt"] = prompt_hash(frame["prompt"].fillna(""))
    frame = frame.rename(columns={"seconds_generate": "seconds"})
    columns = ["prompt", "video", "cut", "input_tokens", "output_tokens", "thinking_tokens"]
    own = ["seconds", "peak_memory", "failed", "updates"]
    frame = frame.drop_duplicates(["task", "doc_id"], keep="last")[["task", "doc_id", *columns, *own]]
    joined = samples.merge(frame, on=["task", "doc_id"], how="left", suffixes=("", "_journal"))
    known = joined["prompt_journal"].notna()
    for column in columns:
        other = joined.pop(f"{column}_journal")
        if column == "video":  # the task's own name of the video is shared by all models; the path is not
            joined[column] = joined[column].where(joined[column].notna(), other)
        elif column == "prompt":
            joined.loc[known, column] = other[known].astype("int64")
        else:
            joined[column] = other.where(known & other.notna(), joined[column])
    joined["cut"] = joined["cut"].astype(bool)
    joined["failed"] = joined["failed"].fillna(False).astype(bool)
    return joined
