"""One lmms-eval output, whatever model wrote it, as a table of samples with the journal's figures beside."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from lmms_eval_vreason.report.catalogue import benchmark_of, part_of
from lmms_eval_vreason.report.files import SamplesFile, find_samples, parse_run, read_json, read_json_lines
from lmms_eval_vreason.report.journals import JournalTables, find_journals, read_journal, run_header
from lmms_eval_vreason.report.scores import answer_of, response_of, score_of, scored_with_tags, unfinished, video_of

KEY = ["row", "part", "doc_id"]
# Column of the samples → its name in lmms-eval's ``token_counts``.
_TOKENS = {"output_tokens": "output_tokens", "thinking_tokens": "reasoning_tokens"}
_TEXTS = ["prompt", "input", "target", "answer", "response"]
_COLUMNS = [*KEY, "task", "score", "metric", "video", *_TEXTS, *_TOKENS, "answered", "cut", "tagged"]
_MEASURED = ("seconds", "peak_memory")  # by journals alone


@dataclass(frozen=True)
class RunResults:
    """What one run left behind.

    Attributes:
        label: what the report calls it; several runs (seeds) may share one.
        path: as the user gave it.
        samples: one row a sample. Columns: row (the table's row), part and doc_id (which document), task, score,
            metric, video, prompt (the text as sent), input (the task's text), target (the gold answer), answer,
            response (thinking included), output_tokens, thinking_tokens, answered, cut, tagged (scored with its
            ``<answer>`` tags), seconds, peak_memory.
        settings: what the results file says of the run: model, model_args, gen_kwargs, limit, seeds, date.
        journal: what its journal holds of these tasks, or None.
        notices: what the reader should know about the files.
        warnings: what makes the run's scores unfit for a comparison.
        results: the newest results file, with the ``configs`` of all tasks.
        journal_files: the files that ``journal`` was read from, one a process.
    """

    label: str
    path: Path
    samples: pd.DataFrame
    settings: dict[str, Any]
    journal: JournalTables | None = None
    notices: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    journal_files: list[Path] = field(default_factory=list)


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
    samples, results = read_samples(path, pattern, notices, warnings)
    journal, files = _matching_journal(path, results, set(samples["task"]), notices)
    samples = _with_journal(samples, journal)
    return RunResults(label, path, samples, _settings(results), journal, notices, warnings, results, files)


def read_samples(
    path: Path, pattern: str, notices: list[str], warnings: list[str]
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The samples of lmms-eval's own files, without a journal's columns, and what the newest results file holds.

    Its ``configs`` has the tasks of older results files as well.

    Raises:
        ValueError: as :func:`read_run`.
    """
    files = find_samples(path, notices, pattern)
    results = {file.results: read_json(file.results) for file in files if file.results.exists()}
    frames = [_read_file(file, results.get(file.results, {}), notices, warnings) for file in files]
    samples = pd.concat(frames, ignore_index=True)
    if samples.empty:
        raise ValueError(f"{path} holds no sample with a numeric score")
    _refuse_twins(path, samples)
    newest = results[max(results)] if results else {}
    configs = {task: config for content in results.values() for task, config in content.get("configs", {}).items()}
    return samples, newest | {"configs": configs}


def _refuse_twins(path: Path, samples: pd.DataFrame) -> None:
    """A run of a benchmark under two prompts has two answers to each document: the user must say which to take."""
    tasks = samples.groupby(["row", "part"])["task"].unique()
    for names in tasks[tasks.map(len) > 1]:
        raise ValueError(
            f"{path}: tasks {', '.join(sorted(names))} ask about the same documents; choose with a pattern of task "
            f"names, as {path}#{min(names, key=len)}"
        )


def _read_file(file: SamplesFile, results: Mapping[str, Any], notices: list[str], warnings: list[str]) -> pd.DataFrame:
    config = results.get("configs", {}).get(file.task, {})
    metrics = [own["metric"] for own in config.get("metric_list") or [] if isinstance(own.get("metric"), str)]
    benchmark = benchmark_of(file.task, results.get("group_subtasks", {}))
    rows, unscored = [], 0
    for sample in read_json_lines(file.path, notices):
        scored = score_of(sample, file.task, benchmark, metrics)
        if scored is None or "doc_id" not in sample:
            unscored += 1
            continue
        own = dict(zip(("row", "metric", "score"), scored, strict=True)) | _token_counts(sample)
        own |= {"doc_id": int(sample["doc_id"]), "video": video_of(sample), "answer": answer_of(sample)}
        own |= dict.fromkeys(("prompt", "input"), str(sample.get("input", "")).strip())
        own |= {"target": str(sample.get("target", "unknown"))}
        own |= {"response": response_of(sample), "cut": unfinished(sample), "tagged": scored_with_tags(sample)}
        rows.append(own)
    frame = pd.DataFrame(rows, columns=_COLUMNS).astype(dict.fromkeys(_TOKENS, float))
    frame = frame.assign(part=part_of(file.task), task=file.task, answered=frame["answer"].ne(""))
    if unscored:
        notices.append(f"{file.path.name}: {unscored} samples have no numeric score and were left out")
    if tagged := frame["tagged"].sum():
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
    frame = frame[~repeated]
    _note_other_aggregate(frame, file.task, results, notices)
    return frame


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
    path: Path, results: Mapping[str, Any], tasks: set[str], notices: list[str]
) -> tuple[JournalTables | None, list[Path]]:
    """The journal that was written with the run's model arguments, and its files."""
    model_args = results.get("config", {}).get("model_args")
    found = find_journals(path, as_given(model_args).get("journal"))
    wanted = arguments(model_args)
    headers = {file: header for file in found if (header := run_header(file))}
    if results:
        headers = {f: h for f, h in headers.items() if wanted.items() <= arguments(h.get("model_args")).items()}
    if found and not headers:
        notices.append(f"{found[0].parent}: no journal there was written with this run's model arguments")
    if not headers:
        return None, []
    files = sorted(headers, key=lambda file: str(headers[file].get("started", "")))
    newest = headers[files[-1]]
    # A run that was made with the same arguments by another version of this package answered all samples again.
    files = [file for file in files if headers[file]["run"] == newest["run"]]
    return read_journal(files, newest["method"], notices, tasks), files


def arguments(given: Any) -> dict[str, str]:
    """Model arguments, a string or a mapping, in one form that compares: ``0.010`` and 0.01 are the same."""
    return {name: plain(value) for name, value in as_given(given).items()}


def as_given(given: Any) -> dict[str, Any]:
    """Arguments by name, from lmms-eval's text (``a=1,b=2``) or from a mapping; empty for None."""
    if isinstance(given, str):
        given = dict(part.split("=", 1) for part in re.split(r",(?=[^,=]+=)", given) if "=" in part)
    return {name.strip(): value for name, value in (given or {}).items()}


def plain(value: Any) -> str:
    """A value as text that compares, whatever its type was."""
    text = str(value).strip().lower()
    try:
        return repr(float(text))
    except ValueError:
        return text


def _with_journal(samples: pd.DataFrame, journal: JournalTables | None) -> pd.DataFrame:
    """Adds the journal's columns; where both know a thing, the journal does (it saw the prompt as sent)."""
    if journal is None:
        return samples.assign(**dict.fromkeys(_MEASURED, float("nan")))
    own = samples.set_index(["task", "doc_id"])
    other = journal.samples.drop_duplicates(["task", "doc_id"], keep="last").set_index(["task", "doc_id"])
    other = other.reindex(own.index)
    # The task's own name of the video is shared by all models; the path is not.
    both = other.combine_first(own).assign(video=own["video"].combine_first(other["video"]))
    return both.reset_index().astype({"cut": bool, **dict.fromkeys((*_TOKENS, *_MEASURED), float)})
