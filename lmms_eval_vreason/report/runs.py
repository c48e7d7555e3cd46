"""One lmms-eval output, whatever model wrote it, as a table of samples with the journal's figures beside."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pandas.util import hash_array

from lmms_eval_vreason.journal.summary import SteeringFacts
from lmms_eval_vreason.report import journals
from lmms_eval_vreason.report.catalogue import benchmark_of, part_of
from lmms_eval_vreason.report.files import SamplesFile, find_samples, parse_run, read_json, read_json_lines
from lmms_eval_vreason.report.scores import answer_of, score_of, scored_with_tags, unfinished, video_of

KEY = ["row", "part", "doc_id"]
# Column of the samples → its name in lmms-eval's ``token_counts``.
_TOKENS = {"input_tokens": "input_tokens", "output_tokens": "output_tokens", "thinking_tokens": "reasoning_tokens"}
_COLUMNS = [*KEY, "task", "score", "metric", "video", "prompt", *_TOKENS, "answered", "cut", "tagged"]


@dataclass(frozen=True)
class RunResults:
    """What one run left behind.

    Attributes:
        label: what the report calls it; several runs (seeds) may share one.
        path: as the user gave it.
        samples: one row a sample. Columns: row (the table's row), part and doc_id (which document), task, score,
            metric, video, prompt (hash of the text as sent), input_tokens, output_tokens, thinking_tokens, answered,
            cut, seconds, peak_memory, failed, updates.
        settings: what the results file says of the run: model, model_args, gen_kwargs, limit, seeds, date.
        journal: the journal's samples as an Arrow table, or None.
        facts: whether the run was steered; None without a journal.
        notices: what the reader should know about the files.
        warnings: what makes the run's scores unfit for a comparison.
    """

    label: str
    path: Path
    samples: pd.DataFrame
    settings: dict[str, Any]
    journal: pa.Table | None = None
    facts: SteeringFacts | None = None
    notices: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read_run(argument: str) -> RunResults:
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
        content = results[file.results] if file.results else {}
        frame = _read_samples(file, content, notices, warnings)
        _note_other_aggregate(frame, file.task, content, notices)
        frames.append(frame)
    samples = pd.concat(frames, ignore_index=True)
    if samples.empty:
        raise ValueError(f"{path} holds no sample with a numeric score")
    _refuse_twins(path, samples)
    newest = results[max(results)] if results else {}
    journal, method = _matching_journal(path, newest, notices)
    facts = None
    if journal is not None:
        journal = journal.filter(pc.is_in(journal["task"], pa.array(samples["task"].unique())))
        facts = journals.journal_facts(journal, method) if len(journal) else None
    return RunResults(
        label, path, _with_journal(samples, journal), _settings(newest), journal, facts, notices, warnings
    )


def _refuse_twins(path: Path, samples: pd.DataFrame) -> None:
    """A run of a benchmark under two prompts has two answers to each document: the user must say which to take."""
    tasks = samples.groupby(["row", "part"])["task"].unique()
    for names in tasks[tasks.map(len) > 1]:
        raise ValueError(
            f"{path}: tasks {', '.join(sorted(names))} ask about the same documents; choose with a pattern of task "
            f"names, as {path}#{min(names, key=len)}"
        )


def metric_names(results: Mapping[str, Any], task: str) -> list[str]:
    """The task's metrics, leading first, from the results file; empty where it names none."""
    listed = results.get("configs", {}).get(task, {}).get("metric_list") or []
    return [metric["metric"] for metric in listed if isinstance(metric.get("metric"), str)]


def _read_samples(
    file: SamplesFile, results: Mapping[str, Any], notices: list[str], warnings: list[str]
) -> pd.DataFrame:
    config = results.get("configs", {}).get(file.task, {})
    metrics = metric_names(results, file.task)
    benchmark = benchmark_of(file.task, results.get("group_subtasks", {}))
    fixed = {"part": part_of(file.task), "task": file.task}
    rows, unscored = [], 0
    for sample in read_json_lines(file.path, notices):
        scored = score_of(sample, file.task, benchmark, metrics)
        if scored is None or "doc_id" not in sample:
            unscored += 1
            continue
        own = dict(zip(("row", "metric", "score"), scored, strict=True)) | _token_counts(sample)
        own |= {"doc_id": int(sample["doc_id"]), "video": video_of(sample), "prompt": str(sample.get("input", ""))}
        own |= {"answered": bool(answer_of(sample)), "cut": unfinished(sample), "tagged": scored_with_tags(sample)}
        rows.append(fixed | own)
    frame = pd.DataFrame(rows, columns=_COLUMNS).astype(dict.fromkeys(_TOKENS, float))
    if unscored:
        notices.append(f"{file.path.name}: {unscored} samples have no numeric score and were left out")
    if tagged := frame.pop("tagged").sum():
        warnings.append(
            f"{file.task}: {tagged} answers were scored with their <answer> tags around them, which tasks that look "
            "for the bare letter count as wrong"
        )
    limit = _token_limit(config, results.get("config", {}))
    frame["cut"] |= frame["output_tokens"] >= limit
    repeated = frame.duplicated(KEY, keep="last")
    if repeated.any():
        notices.append(
            f"{file.path.name}: {repeated.sum()} doc_ids occur more than once (several filters, or two runs that ended "
            "in the same second and wrote into one file); the last of each counts"
        )
    return frame[~repeated].assign(prompt=prompt_hash(frame["prompt"]))


def prompt_hash(prompts: "pd.Series[str]") -> "pd.Series[int]":
    """53-bit hashes of texts, blank margins aside: enough to tell whether two runs sent the same prompt.

    A float64 holds them exactly, so that a column with gaps can.
    """
    hashes = hash_array(prompts.str.strip().to_numpy(dtype=object), categorize=False)
    return pd.Series((hashes >> 11).astype("int64"), index=prompts.index)


def _token_counts(sample: Mapping[str, Any]) -> dict[str, float | None]:
    """Means over the sample's responses."""
    counts = [count for count in sample.get("token_counts") or [] if count]
    known = {own: [n for count in counts if (n := count.get(name)) is not None] for own, name in _TOKENS.items()}
    return {own: sum(numbers) / len(numbers) if numbers else None for own, numbers in known.items()}


def _token_limit(task: Mapping[str, Any], config: Mapping[str, Any]) -> float:
    given = re.search(r"max_new_tokens['\"]?\s*[=:]\s*(\d+)", str(config.get("gen_kwargs") or ""))
    limit = given[1] if given else (task.get("generation_kwargs") or {}).get("max_new_tokens")
    return float("inf" if limit is None else limit)


def _note_other_aggregate(frame: pd.DataFrame, task: str, results: Mapping[str, Any], notices: list[str]) -> None:
    """Says where lmms-eval's own figure is not the mean over samples (MVBench leaves unanswered questions out)."""
    if frame.empty:
        return
    mean = frame["score"].mean()
    for key, value in results.get("results", {}).get(task, {}).items():
        is_leading = key.split(",")[0] == frame["metric"].iat[0] and isinstance(value, int | float)
        if is_leading and min(abs(value - mean), abs(value - 100 * mean)) > 5e-4 * max(1.0, abs(value)):
            notices.append(f"{task}: lmms-eval reports {value:.4g}, the mean over all samples is {mean:.4g}; it counts")


def _settings(results: Mapping[str, Any]) -> dict[str, Any]:
    config = results.get("config", {})
    names = ("model", "model_args", "gen_kwargs", "batch_size", "limit", "random_seed", "torch_seed")
    settings = {name: config.get(name) for name in names if config.get(name) not in (None, "", {})}
    return settings | ({"date": results["date"]} if "date" in results else {})


def _matching_journal(
    path: Path, results: Mapping[str, Any], notices: list[str]
) -> tuple[pa.Table | None, dict[str, Any]]:
    """The journal that was written with the run's model arguments, and its method's hyperparameters."""
    model_args = results.get("config", {}).get("model_args")
    found = journals.find_journals(path, _as_given(model_args).get("journal"))
    wanted = arguments(model_args)
    headers = {file: header for file in found if (header := journals.run_header(file))}
    if results:
        headers = {f: h for f, h in headers.items() if wanted.items() <= arguments(h.get("model_args")).items()}
    if found and not headers:
        notices.append(f"{found[0].parent}: no journal there was written with this run's model arguments")
    if not headers:
        return None, {}
    files = sorted(headers, key=lambda file: str(headers[file].get("started", "")))
    return journals.read_journal(files, notices), headers[files[-1]]["method"]


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
        unknown = float("nan")
        return samples.assign(seconds=unknown, peak_memory=unknown, failed=False, updates=unknown)
    frame = journals.sample_frame(journal).drop_duplicates(["task", "doc_id"], keep="last")
    frame["prompt"] = prompt_hash(frame["prompt"].fillna(""))
    joined = samples.merge(frame, on=["task", "doc_id"], how="left", suffixes=("", "_journal"))
    for column in ("prompt", "video", "cut", *_TOKENS):
        own, other = joined[column], joined.pop(f"{column}_journal")
        # The task's own name of the video is shared by all models; the path is not.
        joined[column] = own.where(own.notna(), other) if column == "video" else other.where(other.notna(), own)
    joined["failed"] = joined["failed"].where(joined["failed"].notna(), False)
    return joined.astype({"cut": bool, "failed": bool, "prompt": "int64"})
