"""Runs side by side: one row a benchmark and run, with its difference to the first run on the samples both have."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lmms_eval_vreason.journal.summary import facts_warning
from lmms_eval_vreason.report import statistics
from lmms_eval_vreason.report.catalogue import VSI_MRA, sort_key
from lmms_eval_vreason.report.journals import steering_facts
from lmms_eval_vreason.report.published import PUBLISHED
from lmms_eval_vreason.report.runs import KEY, Run, arguments

MEAN, MEAN_WITH_MRA = "Mean", "Mean with MRA"
FEW_DISCORDANT = 10
_COSTS = ("output_tokens", "thinking_tokens", "seconds")


@dataclass(frozen=True)
class Label:
    """One column of the comparison: a run, or several runs of one label (seeds), joined sample by sample.

    Attributes:
        name: the label.
        runs: its runs.
        samples: one row a document, indexed by row, part, doc_id; scores and costs are means over the runs.
    """

    name: str
    runs: tuple[Run, ...]
    samples: pd.DataFrame


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        table: one row a benchmark and label, and one a mean and label; columns as ``compare`` documents.
        labels: in the order given; the first is what the others are compared with.
        steering: label → the facts of ``summary.steering_facts``, one a run that has a journal.
        warnings: what may make the comparison unfair, or figures unreliable.
        notices: what was found in the files.
    """

    table: pd.DataFrame
    labels: tuple[Label, ...]
    steering: list[tuple[str, dict]]
    warnings: list[str]
    notices: list[str]


def compare(runs: Sequence[Run], *, resamples: int = statistics.RESAMPLES, published: bool = False) -> Comparison:
    """Compares runs; runs that share a label are seeds of one column.

    Args:
        runs: the first one's label is the baseline.
        resamples: of the bootstrap.
        published: add the paper's figures.

    Returns:
        A comparison whose ``table`` has the columns benchmark, label, published, runs, samples, unit (``%`` or ''),
        score, se, seed_std, difference, low, high, p, p_holm, p_clustered, test, compared, left_out, clusters, gained,
        lost, output_tokens, thinking_tokens, answered, cut, seconds, peak_memory_gb.
    """
    warnings = [f"{run.label}: {warning}" for run in runs for warning in run.warnings]
    labels = tuple(_labels(runs, warnings))
    videos = _videos(labels)
    benchmarks = sorted({row for label in labels for row in label.samples.index.unique("row")}, key=sort_key)
    units = {benchmark: _unit(benchmark, labels) for benchmark in benchmarks}
    cells = {
        (benchmark, label.name): _cell(benchmark, label, labels[0], videos, units[benchmark], seed, resamples, warnings)
        for seed, benchmark in enumerate(benchmarks)
        for label in labels
        if benchmark in label.samples.index.unique("row")
    }
    _warn_missing(benchmarks, labels, warnings)
    _warn_prompts(labels, warnings)
    rows = [record for record, _ in cells.values()]
    _correct(rows, labels)
    table = pd.DataFrame(rows + _means(cells, labels, benchmarks))
    if published:
        table = pd.concat([table, _published(table)], ignore_index=True)
    steered = [run for label in labels for run in label.runs if run.journal is not None and len(run.journal)]
    steering = [(run.label, steering_facts(run.journal)) for run in steered]
    for run, (name, facts) in zip(steered, steering, strict=True):
        if facts_warning(facts) and arguments(run.settings.get("model_args")).get("policy") != "off":
            warnings.append(f"{name}: {facts_warning(facts)}")
    notices = [f"{run.label}: {notice}" for run in runs for notice in run.notices]
    return Comparison(table, labels, steering, warnings, list(dict.fromkeys(notices)))


def _labels(runs: Sequence[Run], warnings: list[str]) -> Iterator[Label]:
    for name in dict.fromkeys(run.label for run in runs):
        own = tuple(run for run in runs if run.label == name)
        frames = [run.samples.set_index(KEY).sort_index() for run in own]
        if len(frames) == 1:
            yield Label(name, own, frames[0])
            continue
        common = frames[0].index
        for frame in frames[1:]:
            common = common.intersection(frame.index)
        left_out = max(len(frame) for frame in frames) - len(common)
        if common.empty:
            raise ValueError(f"the runs labelled {name!r} have no sample in common: they cannot be seeds of one run")
        if left_out:
            warnings.append(f"{name}: {left_out} samples are not in all {len(own)} runs and were left out")
        yield Label(name, own, _mean_over_runs([frame.loc[common] for frame in frames]))


def _mean_over_runs(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    joined = frames[0].copy()
    for column in ("score", "input_tokens", *_COSTS, "answered", "cut", "updates"):
        joined[column] = np.mean([frame[column].to_numpy(dtype=float) for frame in frames], axis=0)
    joined["peak_memory"] = np.max([frame["peak_memory"] for frame in frames], axis=0)
    return joined


def _videos(labels: Sequence[Label]) -> pd.Series:
    """The video of each document, from whichever run knows it."""
    videos = labels[0].samples["video"]
    for label in labels[1:]:
        videos = videos.combine_first(label.samples["video"])
    return videos


def _unit(benchmark: str, labels: Sequence[Label]) -> str:
    """Scores between 0 and 1 in every run are shares, shown in percent; others stay as they are."""
    scores = [label.samples.loc[label.samples.index.get_level_values("row") == benchmark, "score"] for label in labels]
    return "%" if pd.concat(scores).between(0, 1).all() else ""


def _cell(
    benchmark: str,
    label: Label,
    baseline: Label,
    videos: pd.Series,
    unit: str,
    seed: int,
    resamples: int,
    warnings: list[str],
) -> tuple[dict, np.ndarray | None]:
    """One benchmark of one label, and the bootstrap means of its difference to the baseline."""
    samples = label.samples.loc[[benchmark]]
    scores = samples["score"].to_numpy()
    scale = 100.0 if unit == "%" else 1.0
    record = {
        "benchmark": benchmark,
        "label": label.name,
        "published": False,
        "runs": len(label.runs),
        "samples": len(samples),
        "unit": unit,
        "score": scale * scores.mean(),
        "se": scale * statistics.standard_error(scores, statistics.cluster_codes(videos.reindex(samples.index))),
        "seed_std": scale * _std_over_runs(label, samples.index),
        **_costs(samples),
    }
    if label is baseline or benchmark not in baseline.samples.index.unique("row"):
        return record, None
    others = baseline.samples.loc[[benchmark]]
    common = samples.index.intersection(others.index)
    if common.empty:
        warnings.append(f"{benchmark}: {label.name} and {baseline.name} have no sample in common")
        return record, None
    difference, means = _difference(label, baseline, common, videos, seed, resamples)
    left_out = len(samples) + len(others) - 2 * len(common)
    _warn_difference(f"{benchmark}: {label.name} against {baseline.name}", difference, left_out, warnings)
    scaled = {name: scale * getattr(difference, name) for name in ("difference", "low", "high")}
    plain = {name: getattr(difference, name) for name in ("p", "p_clustered", "test", "clusters", "gained", "lost")}
    return record | scaled | plain | {"compared": len(common), "left_out": left_out}, means * scale


def _std_over_runs(label: Label, documents: pd.Index) -> float:
    """Standard deviation of the runs' mean scores on the same documents; nan for one run."""
    if len(label.runs) == 1:
        return np.nan
    means = [run.samples.set_index(KEY)["score"].reindex(documents).mean() for run in label.runs]
    return float(np.std(means, ddof=1))


def _warn_difference(who: str, difference: statistics.PairedTest, left_out: int, warnings: list[str]) -> None:
    if left_out:
        warnings.append(f"{who} compares the {difference.samples} samples that both have; {left_out} were left out")
    changed = None if difference.gained is None else difference.gained + difference.lost
    if changed is not None and 0 < changed < FEW_DISCORDANT:
        warnings.append(f"{who} differs on {changed} samples only; the interval is rough")


def _difference(
    label: Label, baseline: Label, common: pd.Index, videos: pd.Series, seed: int, resamples: int
) -> tuple[statistics.PairedTest, np.ndarray]:
    first = baseline.samples.loc[common, "score"].to_numpy()
    second = label.samples.loc[common, "score"].to_numpy()
    clusters = statistics.cluster_codes(videos.reindex(common))
    single = len(label.runs) == len(baseline.runs) == 1
    return statistics.paired_test(first, second, clusters, single=single, resamples=resamples, seed=seed)


def _costs(samples: pd.DataFrame) -> dict[str, float]:
    means = {name: samples[name].mean() for name in _COSTS}
    shares = {name: 100 * samples[name].astype(float).mean() for name in ("answered", "cut")}
    return means | shares | {"peak_memory_gb": samples["peak_memory"].max() / 1e9}


def _correct(rows: list[dict], labels: Sequence[Label]) -> None:
    """Holm's correction over the benchmarks of each comparison, in place."""
    for label in labels[1:]:
        own = [row for row in rows if row["label"] == label.name and "p" in row]
        for row, corrected in zip(own, statistics.holm([row["p"] for row in own]), strict=True):
            row["p_holm"] = corrected


def _means(cells: Mapping, labels: Sequence[Label], benchmarks: Sequence[str]) -> list[dict]:
    """Macro means over the benchmarks that every label has; MRA counts in a mean of its own, as in the paper."""
    shared = [b for b in benchmarks if all((b, label.name) in cells for label in labels)]
    percent = [b for b in shared if cells[b, labels[0].name][0]["unit"] == "%"]
    accuracy = [b for b in percent if b != VSI_MRA]
    named = [(MEAN, accuracy)] + ([(MEAN_WITH_MRA, percent)] if VSI_MRA in percent else [])
    return [_mean(name, label, over, cells) for name, over in named if len(over) > 1 for label in labels]


def _mean(name: str, label: Label, over: Sequence[str], cells: Mapping) -> dict:
    rows = [cells[benchmark, label.name][0] for benchmark in over]
    record = {"benchmark": name, "label": label.name, "published": False, "runs": len(label.runs), "unit": "%"}
    record["samples"] = sum(row["samples"] for row in rows)
    for column in ("score", *_COSTS, "answered", "cut"):
        record[column] = float(np.mean([row[column] for row in rows]))
    record["se"] = float(np.sqrt(np.square([row["se"] for row in rows]).sum()) / len(rows))
    record["peak_memory_gb"] = max(row["peak_memory_gb"] for row in rows)
    if len(label.runs) > 1:
        seeds = [
            np.mean([run.samples.loc[run.samples["row"] == b, "score"].mean() for b in over]) for run in label.runs
        ]
        record["seed_std"] = 100 * float(np.std(seeds, ddof=1))
    distributions = [cells[benchmark, label.name][1] for benchmark in over]
    if any(means is None for means in distributions):
        return record
    means = np.mean(distributions, axis=0)
    clusters = sum(row["clusters"] for row in rows)
    low, high = statistics.percentile_interval(means, clusters)
    p = float(statistics.bootstrap_p(means))
    return record | {
        "difference": float(np.mean([row["difference"] for row in rows])),
        "low": float(low),
        "high": float(high),
        "p": p,
        "p_clustered": p,
        "test": "clustered bootstrap",
        "clusters": clusters,
        "compared": sum(row["compared"] for row in rows),
        "left_out": sum(row["left_out"] for row in rows),
    }


def _published(table: pd.DataFrame) -> pd.DataFrame:
    present = [b for b in table["benchmark"].unique() if b not in (MEAN, MEAN_WITH_MRA)]
    rows = []
    for model in PUBLISHED:
        scores = model.by_benchmark()
        base = {"label": model.label, "published": True, "unit": "%"}
        rows += [base | {"benchmark": b, "score": scores[b]} for b in present if b in scores]
        if len(scores) == len([b for b in present if b in scores]):
            accuracy = [score for b, score in scores.items() if b != VSI_MRA]
            rows.append(base | {"benchmark": MEAN, "score": np.mean(accuracy), "output_tokens": model.output_tokens})
            rows.append(base | {"benchmark": MEAN_WITH_MRA, "score": np.mean(model.scores)})
    return pd.DataFrame(rows)


def _warn_missing(benchmarks: Sequence[str], labels: Sequence[Label], warnings: list[str]) -> None:
    for label in labels:
        missing = [b for b in benchmarks if b not in label.samples.index.unique("row")]
        if missing:
            warnings.append(f"{label.name} has no {', '.join(missing)}: left out of the mean of all runs")


def _warn_prompts(labels: Sequence[Label], warnings: list[str]) -> None:
    first = labels[0]
    for label in labels[1:]:
        common = label.samples.index.intersection(first.samples.index)
        differ = label.samples.loc[common, "prompt"].ne(first.samples.loc[common, "prompt"])
        counts = differ.groupby(level="row").sum()
        shown = [
            f"{row} ({count} of {(common.get_level_values('row') == row).sum()})"
            for row, count in counts.items()
            if count
        ]
        if shown:
            warnings.append(
                f"{label.name} and {first.name} were asked with different prompts: {', '.join(shown)}. "
                "Their difference is not the method's alone"
            )
