"""Runs side by side: one row a benchmark and run, with its difference to the first run on the samples both have."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from typing import Any

import numpy as np
import pandas as pd

from lmms_eval_vreason.journal.summary import SteeringFacts, steering_warning
from lmms_eval_vreason.report import statistics
from lmms_eval_vreason.report.catalogue import PUBLISHED, VSI_MRA, sort_key
from lmms_eval_vreason.report.runs import KEY, RunResults

MEAN, MEAN_WITH_MRA = "Mean", "Mean with MRA"
FEW_CHANGED = 10
_COSTS = ("output_tokens", "thinking_tokens", "seconds")
_SHARES = ("answered", "cut")
_INTERVAL = ("difference", "low", "high")
_TEST = ("p", "p_clustered", "p_mcnemar", "test", "clusters", "changed", "gained", "lost")
_COMPARED = [*_INTERVAL, *_TEST, "compared", "left_out", "p_holm"]  # nothing of the first run


@dataclass(frozen=True)
class RunGroup:
    """One column of the comparison: a run, or several runs of one label (seeds), joined sample by sample.

    Attributes:
        name: the label.
        runs: its runs.
        samples: one row a document, indexed by row, part, doc_id; scores and costs are means over the runs.
    """

    name: str
    runs: tuple[RunResults, ...]
    samples: pd.DataFrame

    def rows(self, benchmark: str) -> pd.DataFrame:
        """The samples of one benchmark; empty where the group has none."""
        return self.samples[self.samples.index.get_level_values("row") == benchmark]

    def seed_std(self, documents: Sequence[pd.Index]) -> float:
        """Standard deviation between the runs' scores, a mean over benchmarks; nan for one run.

        Args:
            documents: of each benchmark.
        """
        if len(self.runs) == 1:
            return float("nan")
        scores = [run.samples.set_index(KEY)["score"] for run in self.runs]
        return float(np.std([np.mean([own.reindex(index).mean() for index in documents]) for own in scores], ddof=1))


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        table: one row a benchmark and label, and one a mean and label; columns as ``compare`` documents.
        groups: in the order given; the first is what the others are compared with.
        steering: (label, facts) of each run that has a journal.
        warnings: what may make the comparison unfair, or figures unreliable.
        notices: what was found in the files.
    """

    table: pd.DataFrame
    groups: tuple[RunGroup, ...]
    steering: list[tuple[str, SteeringFacts]]
    warnings: list[str]
    notices: list[str]


@dataclass(frozen=True)
class _Cell:
    """One benchmark of one group: its table row, its documents, and its test (None: it is not compared)."""

    record: dict[str, Any]
    documents: pd.Index
    test: statistics.PairedTest | None = None


def compare(
    runs: Sequence[RunResults], *, resamples: int = statistics.RESAMPLES, published: bool = False
) -> Comparison:
    """Compares runs; runs that share a label are seeds of one column.

    Args:
        runs: the first one's label is the baseline.
        resamples: of the bootstrap.
        published: add the paper's figures.

    Returns:
        A comparison whose ``table`` has the columns benchmark, label, published, runs, samples, unit (``%`` or ''),
        score, se, seed_std, difference, low, high, p, p_holm, p_clustered, p_mcnemar, test, compared, left_out,
        clusters, changed, gained, lost, output_tokens, thinking_tokens, answered, cut, seconds, peak_memory_gb.
    """
    warnings = [f"{run.label}: {warning}" for run in runs for warning in run.warnings]
    groups = tuple(_groups(runs, warnings))
    table = pd.DataFrame(_Comparer(groups, resamples, warnings).records())
    table = table.reindex(columns=table.columns.union(_COMPARED, sort=False))
    if published:
        table = pd.concat([table, _published(table)], ignore_index=True)
    steering = [(run.label, run.facts) for group in groups for run in group.runs if run.facts]
    warnings += [f"{name}: {warning}" for name, facts in steering if (warning := steering_warning(facts))]
    notices = [f"{run.label}: {notice}" for run in runs for notice in run.notices]
    return Comparison(table, groups, steering, warnings, list(dict.fromkeys(notices)))


def _groups(runs: Sequence[RunResults], warnings: list[str]) -> Iterator[RunGroup]:
    for name in dict.fromkeys(run.label for run in runs):
        own = tuple(run for run in runs if run.label == name)
        frames = [run.samples.set_index(KEY).sort_index() for run in own]
        common = reduce(pd.Index.intersection, [frame.index for frame in frames])
        if common.empty:
            raise ValueError(f"the runs labelled {name!r} have no sample in common: they cannot be seeds of one run")
        if left_out := max(map(len, frames)) - len(common):
            warnings.append(f"{name}: {left_out} samples are not in all {len(own)} runs and were left out")
        frames = [frame.loc[common] for frame in frames]
        joined = frames[0].copy()
        for column in ("score", "input_tokens", *_COSTS, *_SHARES, "updates"):
            joined[column] = np.mean([frame[column].to_numpy(dtype=float) for frame in frames], axis=0)
        joined["peak_memory"] = np.max([frame["peak_memory"] for frame in frames], axis=0)
        yield RunGroup(name, own, joined)


@dataclass
class _Comparer:
    """Makes the table's records; adds to ``warnings`` on the way."""

    groups: tuple[RunGroup, ...]
    resamples: int
    warnings: list[str]
    cells: dict[tuple[str, str], _Cell] = field(default_factory=dict)

    def records(self) -> list[dict[str, Any]]:
        benchmarks = sorted({row for group in self.groups for row in group.samples.index.unique("row")}, key=sort_key)
        for seed, benchmark in enumerate(benchmarks):
            unit = self._unit(benchmark)
            for group in self.groups:
                if len(group.rows(benchmark)):
                    self.cells[benchmark, group.name] = self._cell(benchmark, group, unit, seed)
        for group in self.groups:
            self._correct(group)
            self._warn_missing(group, benchmarks)
        for group in self.groups[1:]:
            self._warn_prompts(group)
        return [cell.record for cell in self.cells.values()] + list(self._means(benchmarks))

    def _unit(self, benchmark: str) -> str:
        """Scores between 0 and 1 in every run are shares, shown in percent; others stay as they are."""
        return "%" if all(group.rows(benchmark)["score"].between(0, 1).all() for group in self.groups) else ""

    @cached_property
    def _videos(self) -> "pd.Series[str]":
        """The video of each document, from the first run that knows it."""
        return reduce(pd.Series.combine_first, [group.samples["video"] for group in self.groups])

    def _clusters(self, documents: pd.Index) -> statistics.Array:
        return statistics.cluster_codes(self._videos.reindex(documents))

    def _cell(self, benchmark: str, group: RunGroup, unit: str, seed: int) -> _Cell:
        samples, baseline = group.rows(benchmark), self.groups[0]
        scores, scale = samples["score"].to_numpy(), 100.0 if unit == "%" else 1.0
        record = {
            **_named(benchmark, group, unit),
            "samples": len(samples),
            "score": scale * scores.mean(),
            "se": scale * statistics.standard_error(scores, self._clusters(samples.index)),
            "seed_std": scale * group.seed_std([samples.index]),
            **{name: samples[name].mean() for name in _COSTS},
            **{name: 100 * samples[name].astype(float).mean() for name in _SHARES},
            "peak_memory_gb": samples["peak_memory"].max() / 1e9,
        }
        others = baseline.rows(benchmark)
        common = samples.index.intersection(others.index)
        if group is not baseline and len(others) and common.empty:
            self.warnings.append(f"{benchmark}: {group.name} and {baseline.name} have no sample in common")
        if group is baseline or common.empty:
            return _Cell(record, samples.index)
        clusters, first, second = (
            self._clusters(common),
            *(f.loc[common, "score"].to_numpy() for f in (others, samples)),
        )
        interval = statistics.clustered_interval(scale * (second - first), clusters, self.resamples, seed)
        single = len(group.runs) == len(baseline.runs) == 1
        test = statistics.paired_test(first, second, clusters, interval, single_runs=single)
        left_out = len(samples) + len(others) - 2 * len(common)
        self._warn_difference(f"{benchmark}: {group.name} against {baseline.name}", test, left_out)
        record |= _interval(interval) | {name: getattr(test, name) for name in _TEST}
        return _Cell(record | {"compared": len(common), "left_out": left_out}, samples.index, test)

    def _warn_difference(self, who: str, test: statistics.PairedTest, left_out: int) -> None:
        if left_out:
            self.warnings.append(f"{who} compares the {test.samples} samples that both have; {left_out} were left out")
        if not test.changed:
            self.warnings.append(f"{who} differs on none of {test.samples} samples; no interval can be made of that")
        elif np.isnan(test.interval.low):
            reason = "all samples are on one video" if test.clusters < 2 else "every video differs by the same amount"
            self.warnings.append(f"{who} has no interval: {reason}")
        elif test.changed < FEW_CHANGED:
            self.warnings.append(f"{who} differs on {test.changed} samples only; the interval is rough")

    def _correct(self, group: RunGroup) -> None:
        """Holm's correction over the benchmarks of a group's comparison."""
        own = [cell for (_, name), cell in self.cells.items() if name == group.name and cell.test]
        for cell, corrected in zip(own, statistics.holm([cell.record["p"] for cell in own]), strict=True):
            cell.record["p_holm"] = corrected

    def _means(self, benchmarks: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Macro means over the benchmarks that every group has; MRA counts in a mean of its own, as in the paper."""
        names = [group.name for group in self.groups]
        shared = [b for b in benchmarks if all((b, name) in self.cells for name in names)]
        percent = [b for b in shared if self.cells[b, names[0]].record["unit"] == "%"]
        accuracy = [b for b in percent if b != VSI_MRA]
        for name, over in ((MEAN, accuracy), (MEAN_WITH_MRA, percent if VSI_MRA in percent else [])):
            if len(over) > 1:
                yield from (_mean(name, group, [self.cells[b, group.name] for b in over]) for group in self.groups)

    def _warn_missing(self, group: RunGroup, benchmarks: Sequence[str]) -> None:
        if missing := [b for b in benchmarks if (b, group.name) not in self.cells]:
            self.warnings.append(f"{group.name} has no {', '.join(missing)}: left out of the mean of all runs")

    def _warn_prompts(self, group: RunGroup) -> None:
        first = self.groups[0]
        common = group.samples.index.intersection(first.samples.index)
        differ = group.samples.loc[common, "prompt"].ne(first.samples.loc[common, "prompt"]).groupby(level="row")
        counts = zip(differ.sum().items(), differ.count(), strict=True)
        if shown := [f"{row} ({count} of {samples})" for (row, count), samples in counts if count]:
            self.warnings.append(
                f"{group.name} and {first.name} were asked with different prompts: {', '.join(shown)}. "
                "Their difference is not the method's alone"
            )


def _named(benchmark: str, group: RunGroup, unit: str) -> dict[str, Any]:
    return {"benchmark": benchmark, "label": group.name, "published": False, "runs": len(group.runs), "unit": unit}


def _interval(interval: statistics.Interval) -> dict[str, float]:
    return {name: getattr(interval, name) for name in _INTERVAL}


def _mean(name: str, group: RunGroup, cells: Sequence[_Cell]) -> dict[str, Any]:
    records = [cell.record for cell in cells]
    record = _named(name, group, "%") | {"samples": sum(own["samples"] for own in records)}
    for column in ("score", *_COSTS, *_SHARES):
        record[column] = float(np.mean([own[column] for own in records]))
    # Benchmarks are independent of each other.
    record["se"] = float(np.sqrt(np.square([own["se"] for own in records]).sum()) / len(records))
    record["seed_std"] = 100 * group.seed_std([cell.documents for cell in cells])
    record["peak_memory_gb"] = max(own["peak_memory_gb"] for own in records)
    tests = [cell.test for cell in cells if cell.test]
    if len(tests) < len(cells):
        return record
    counts = {name: sum(own[name] for own in records) for name in ("clusters", "compared", "left_out", "changed")}
    difference = float(np.mean([test.interval.difference for test in tests]))
    means = np.mean([test.interval.means for test in tests], axis=0)
    interval = statistics.interval_from(difference, means, counts["clusters"])
    p = statistics.permutation_p(np.concatenate([test.parts for test in tests]), len(means))
    return record | counts | _interval(interval) | {"p": p, "p_clustered": p, "test": statistics.PERMUTATION}


def _published(table: pd.DataFrame) -> pd.DataFrame:
    present = [b for b in table["benchmark"].unique() if b not in (MEAN, MEAN_WITH_MRA)]
    rows = []
    for model in PUBLISHED:
        scores = model.by_benchmark()
        base = {"label": model.label, "published": True, "unit": "%"}
        rows += [base | {"benchmark": b, "score": scores[b]} for b in present if b in scores]
        if set(scores) <= set(present):
            accuracy = [score for b, score in scores.items() if b != VSI_MRA]
            rows.append(base | {"benchmark": MEAN, "score": np.mean(accuracy), "output_tokens": model.output_tokens})
            rows.append(base | {"benchmark": MEAN_WITH_MRA, "score": np.mean(model.scores)})
    return pd.DataFrame(rows)
