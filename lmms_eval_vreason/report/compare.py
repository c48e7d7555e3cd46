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
from lmms_eval_vreason.report.journals import JournalTables, entropy_figures
from lmms_eval_vreason.report.runs import KEY, RunResults

MEAN, MEAN_WITH_MRA = "Mean", "Mean with MRA"
FEW_CHANGED = 10
_COSTS = ["output_tokens", "thinking_tokens", "seconds"]
_SHARES = ["answered", "cut"]
_TEST = ("p", "p_clustered", "p_mcnemar", "test", "clusters", "changed", "gained", "lost")
_COMPARED = ["difference", "low", "high", *_TEST, "compared", "left_out", "p_holm"]  # nothing of the first run


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

    @cached_property
    def journals(self) -> list[JournalTables]:
        """Those of its runs."""
        return [run.journal for run in self.runs if run.journal is not None]

    @cached_property
    def tokens(self) -> pd.DataFrame:
        """The journals' traces, indexed by journal, sample and token; empty without a trace."""
        frames = {place: journal.tokens for place, journal in enumerate(self.journals)}
        return pd.concat(frames, names=["journal"]) if frames else pd.DataFrame()

    def seed_std(self, benchmarks: Sequence[str]) -> float:
        """Standard deviation between the runs' scores, each a mean over benchmarks; nan for one run."""
        if len(self.runs) == 1:
            return float("nan")
        documents = [self.rows(benchmark).index for benchmark in benchmarks]
        scores = [run.samples.set_index(KEY)["score"] for run in self.runs]
        return float(np.std([np.mean([own.reindex(index).mean() for index in documents]) for own in scores], ddof=1))


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        table: one row a benchmark and label, and one a mean and label; columns as ``compare`` documents.
        groups: in the order given; the first is what the others are compared with.
        entropy: label → its :func:`entropy_figures`, of those that have a journal with traces.
        steering: (label, facts) of each run that has a journal.
        warnings: what may make the comparison unfair, or figures unreliable.
        notices: what was found in the files.
    """

    table: pd.DataFrame
    groups: tuple[RunGroup, ...]
    entropy: dict[str, dict[str, float]]
    steering: list[tuple[str, SteeringFacts]]
    warnings: list[str]
    notices: list[str]


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
    steering = [(group.name, journal.facts) for group in groups for journal in group.journals if journal.facts]
    warnings += [f"{name}: {warning}" for name, facts in steering if (warning := steering_warning(facts))]
    notices = [f"{run.label}: {notice}" for run in runs for notice in run.notices]
    entropy = {group.name: entropy_figures(group.tokens) for group in groups if len(group.tokens)}
    return Comparison(table, groups, entropy, steering, warnings, list(dict.fromkeys(notices)))


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
        means = ["score", *_COSTS, *_SHARES]
        joined[means] = sum(frame[means].astype(float) for frame in frames) / len(frames)
        joined["peak_memory"] = np.max([frame["peak_memory"] for frame in frames], axis=0)
        yield RunGroup(name, own, joined)


@dataclass
class _Comparer:
    """Makes the table's records, and the test behind each, by benchmark and label; adds to ``warnings`` on the way."""

    groups: tuple[RunGroup, ...]
    resamples: int
    warnings: list[str]
    cells: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    tests: dict[tuple[str, str], statistics.PairedTest] = field(default_factory=dict)

    def records(self) -> list[dict[str, Any]]:
        benchmarks = sorted({row for group in self.groups for row in group.samples.index.unique("row")}, key=sort_key)
        for seed, benchmark in enumerate(benchmarks):
            # Scores between 0 and 1 in every run are shares, shown in percent; others stay as they are.
            shares = all(group.rows(benchmark)["score"].between(0, 1).all() for group in self.groups)
            for group in (group for group in self.groups if len(group.rows(benchmark))):
                self.cells[benchmark, group.name] = self._describe(benchmark, group, "%" if shares else "")
                if group is not self.groups[0]:
                    self._compare(benchmark, group, 100.0 if shares else 1.0, seed)
        for group in self.groups:
            self._correct(group)
            if missing := [b for b in benchmarks if (b, group.name) not in self.cells]:
                self.warnings.append(f"{group.name} has no {', '.join(missing)}: left out of the mean of all runs")
        for group in self.groups[1:]:
            self._warn_prompts(group)
        return [*self.cells.values(), *self._means(benchmarks)]

    @cached_property
    def _videos(self) -> "pd.Series[str]":
        """The video of each document, from the first run that knows it."""
        return reduce(pd.Series.combine_first, [group.samples["video"] for group in self.groups])

    def _clusters(self, documents: pd.Index) -> statistics.Array:
        return statistics.cluster_codes(self._videos.reindex(documents))

    def _describe(self, benchmark: str, group: RunGroup, unit: str) -> dict[str, Any]:
        samples, scale = group.rows(benchmark), 100 if unit else 1
        scores = samples["score"].to_numpy()
        return {
            **_named(benchmark, group, unit),
            "samples": len(samples),
            "score": scale * scores.mean(),
            "se": scale * statistics.standard_error(scores, self._clusters(samples.index)),
            "seed_std": scale * group.seed_std([benchmark]),
            **samples[_COSTS].mean(),
            **(100 * samples[_SHARES].mean()),
            "peak_memory_gb": samples["peak_memory"].max() / 1e9,
        }

    def _compare(self, benchmark: str, group: RunGroup, scale: float, seed: int) -> None:
        """Adds the difference to the first run, on the samples that both have."""
        baseline = self.groups[0]
        samples, others = group.rows(benchmark), baseline.rows(benchmark)
        common = samples.index.intersection(others.index)
        if common.empty:
            if len(others):
                self.warnings.append(f"{benchmark}: {group.name} and {baseline.name} have no sample in common")
            return
        first, second = (rows.loc[common, "score"].to_numpy() for rows in (others, samples))
        clusters, single = self._clusters(common), len(group.runs) == len(baseline.runs) == 1
        interval = statistics.clustered_interval(scale * (second - first), clusters, self.resamples, seed)
        test = statistics.paired_test(first, second, clusters, interval, single_runs=single)
        left_out = len(samples) + len(others) - 2 * len(common)
        self._warn_difference(f"{benchmark}: {group.name} against {baseline.name}", test, left_out)
        self.tests[benchmark, group.name] = test
        compared = {**_bounds(interval), **{name: getattr(test, name) for name in _TEST}}
        self.cells[benchmark, group.name] |= compared | {"compared": len(common), "left_out": left_out}

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
        own = {key: test.p for key, test in self.tests.items() if key[1] == group.name}
        for key, corrected in zip(own, statistics.holm(list(own.values())), strict=True):
            self.cells[key]["p_holm"] = corrected

    def _means(self, benchmarks: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Macro means over the benchmarks that every group has; MRA counts in a mean of its own, as in the paper."""
        shared = [b for b in benchmarks if all((b, group.name) in self.cells for group in self.groups)]
        percent = [b for b in shared if self.cells[b, self.groups[0].name]["unit"] == "%"]
        accuracy = [b for b in percent if b != VSI_MRA]
        for name, over in ((MEAN, accuracy), (MEAN_WITH_MRA, percent if VSI_MRA in percent else [])):
            if len(over) > 1:
                yield from (self._mean(name, group, over) for group in self.groups)

    def _mean(self, name: str, group: RunGroup, benchmarks: Sequence[str]) -> dict[str, Any]:
        own = pd.DataFrame([self.cells[benchmark, group.name] for benchmark in benchmarks])
        record = {
            **_named(name, group, "%"),
            "samples": own["samples"].sum(),
            **own[["score", *_COSTS, *_SHARES]].mean(skipna=False),
            # Benchmarks are independent of each other.
            "se": np.sqrt(own["se"].pow(2).sum(skipna=False)) / len(own),
            "seed_std": 100 * group.seed_std(benchmarks),
            "peak_memory_gb": own["peak_memory_gb"].max(skipna=False),
        }
        tests = [self.tests[b, group.name] for b in benchmarks if (b, group.name) in self.tests]
        if len(tests) < len(own):
            return record
        counts = own[["clusters", "compared", "left_out", "changed"]].sum().to_dict()
        difference = float(np.mean([test.interval.difference for test in tests]))
        means = np.mean([test.interval.means for test in tests], axis=0)
        interval = statistics.interval_from(difference, means, int(counts["clusters"]))
        p = statistics.permutation_p(np.concatenate([test.parts for test in tests]), len(means))
        return record | counts | _bounds(interval) | {"p": p, "p_clustered": p, "test": statistics.PERMUTATION}

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


def _bounds(interval: statistics.Interval) -> dict[str, float]:
    return {"difference": interval.difference, "low": interval.low, "high": interval.high}


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
