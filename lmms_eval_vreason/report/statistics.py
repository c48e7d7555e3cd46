"""Standard errors, intervals and paired tests. Questions on one video count as one observation (a cluster).

scipy makes the bootstrap and the permutation test, statsmodels the cluster-robust covariance, McNemar's test and
Holm's correction. Only the small-sample expansion of the percentiles is written here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

Array = np.ndarray[Any, np.dtype[Any]]

RESAMPLES = 2000
MCNEMAR, PERMUTATION = "McNemar exact", "paired permutation"
_BATCH_VALUES = 4_000_000  # values that one batch of resamples may hold


@dataclass(frozen=True)
class Interval:
    """A mean difference with its 95% interval, by the clustered bootstrap.

    Attributes:
        difference: the mean difference.
        low, high: bounds; nan where the data hold no spread to make an interval of.
        means: (resamples,) the bootstrap's means.
    """

    difference: float
    low: float
    high: float
    means: Array


@dataclass(frozen=True)
class PairedTest:
    """How two runs differ on the samples that both have.

    Attributes:
        interval: mean of second minus first.
        p: of ``test``.
        test: ``McNemar exact`` for right-or-wrong scores of single runs with one question a video, else
            ``paired permutation``.
        p_clustered: of the permutation test.
        p_mcnemar: of McNemar's test wherever scores are right or wrong (nan elsewhere). It takes the questions on one
            video as independent.
        parts: (clusters,) what each cluster adds to the difference.
        samples, changed: compared samples, and those whose scores differ.
        gained, lost: samples that only the second, only the first run gets right (None unless right-or-wrong).
    """

    interval: Interval
    p: float
    test: str
    p_clustered: float
    p_mcnemar: float
    parts: Array
    samples: int
    changed: int
    gained: int | None = None
    lost: int | None = None

    @property
    def clusters(self) -> int:
        """Videos, where they are known."""
        return len(self.parts)


def standard_error(scores: Array, clusters: Array) -> float:
    """Cluster-robust standard error of the mean (Liang and Zeger 1986; for evals: Miller 2024, arXiv 2411.00640).

    √(G/(G−1) · Σ_g (Σ_{i∈g} (x_i − x̄))²) / n for G clusters and n samples, by statsmodels. Clusters are independent
    draws; within one, samples may depend on each other in any way.

    Args:
        scores: (samples,).
        clusters: (samples,) integer codes. All different gives the ordinary standard error.

    Returns:
        nan with fewer than two clusters.
    """
    if len(np.unique(clusters)) < 2:
        return math.nan
    fit = OLS(scores, np.ones(len(scores))).fit(cov_type="cluster", cov_kwds={"groups": clusters})
    return float(fit.bse[0])


def bootstrap_means(sums: Array, sizes: Array, resamples: int = RESAMPLES, seed: int = 0) -> Array:
    """Means under resampling of whole clusters with replacement, by ``scipy.stats.bootstrap``.

    Each is the ratio Σ sums / Σ sizes over G drawn clusters, so large clusters weigh by their questions.

    Args:
        sums, sizes: (…, clusters) totals of the clusters; leading axes are separate data sets.
        resamples: how many.
        seed: of the resampling, so that a report repeats exactly.

    Returns:
        (…, resamples).
    """
    result = stats.bootstrap(
        (sums, sizes),
        lambda sums, sizes, axis: sums.sum(axis=axis) / sizes.sum(axis=axis),
        n_resamples=resamples,
        batch=max(1, _BATCH_VALUES // sums.size),
        paired=True,
        vectorized=True,
        axis=-1,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return np.asarray(result.bootstrap_distribution)


def percentile_interval(means: Array, clusters: int) -> tuple[Array, Array]:
    """95% bounds from bootstrap means along the last axis: expanded percentiles.

    Plain percentiles are too narrow for few clusters, by √((n−1)/n) and by the normal in place of Student's t. The
    tail is therefore Φ(√(n/(n−1)) · t_{0.025, n−1}) (Hesterberg 2014, arXiv 1411.5279, section 4.1.3). The expansion
    vanishes as clusters grow.
    """
    tail = stats.norm.cdf(np.sqrt(clusters / (clusters - 1)) * stats.t.ppf(0.025, clusters - 1))
    low, high = np.quantile(means, [tail, 1 - tail], axis=-1)
    return low, high


def interval_from(difference: float, means: Array, clusters: int) -> Interval:
    """The interval of a difference whose bootstrap means are known; without bounds where the means have no spread."""
    if clusters < 2 or np.isnan(means).any() or np.allclose(means, means[0], rtol=1e-9, atol=1e-12):
        return Interval(difference, math.nan, math.nan, means)
    low, high = percentile_interval(means, clusters)
    return Interval(difference, float(low), float(high), means)


def clustered_interval(values: Array, clusters: Array, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Mean of paired differences with its clustered bootstrap interval.

    Args:
        values: (samples,) differences.
        clusters: (samples,) integer codes from 0.
        resamples, seed: as for :func:`bootstrap_means`.
    """
    sums, sizes = np.bincount(clusters, values), np.bincount(clusters).astype(float)
    few = len(sums) < 2
    means = np.full(resamples, np.nan) if few else bootstrap_means(sums, sizes, resamples, seed)
    return interval_from(float(values.mean()), means, len(sums))


def permutation_p(parts: Array, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Two-sided p-value of "no difference", by ``scipy.stats.permutation_test`` over whole clusters.

    Without a difference the two runs' names can be swapped on any video, which flips the sign of what the video adds:
    p is twice the share of sign patterns whose sum lies as far out (at most 1). It assumes independent videos and
    nothing about the questions within one. Exact where 2^clusters fits into ``resamples``, else from random
    patterns and never below 2/(resamples + 1). With one question a video and answers right or wrong it is McNemar's
    exact test.

    Args:
        parts: (clusters,) what each adds to the difference; zeros do not count.
        resamples, seed: of the random patterns.
    """
    parts = parts[np.abs(parts) > 1e-12]
    if len(parts) < 2:
        return 1.0  # one sign pattern and its mirror image
    result = stats.permutation_test(
        (parts / np.abs(parts).max(),),
        lambda signed, axis: signed.sum(axis=axis).round(9),  # equal sums have to compare as equal
        permutation_type="samples",
        n_resamples=resamples,
        batch=max(1, _BATCH_VALUES // parts.size),
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return min(1.0, float(result.pvalue))


def paired_test(
    first: Array, second: Array, clusters: Array, interval: Interval, *, single_runs: bool = True
) -> PairedTest:
    """Compares two runs sample by sample.

    McNemar's exact test is the binomial test of gained against lost. It needs independent questions: with 18 questions
    a video that share half of their variance it rejects a true "no difference" in 28% of simulated comparisons instead
    of 5%. Where a video has several questions the permutation test, which is the same but for whole videos, stands in
    its place.

    Args:
        first, second: (samples,) scores in the same order (means over seeds where a label has several runs).
        clusters: (samples,) integer codes from 0.
        interval: of the difference, from :func:`clustered_interval`; its resamples are the permutation test's as well.
        single_runs: whether each side is one run, so that its scores are answers and not means over seeds.
    """
    changed, parts = int((first != second).sum()), np.bincount(clusters, second - first) / len(first)
    p = permutation_p(parts, len(interval.means))
    if not (single_runs and is_binary(first) and is_binary(second)):
        return PairedTest(interval, p, PERMUTATION, p, math.nan, parts, len(first), changed)
    gained, lost = int((second > first).sum()), int((second < first).sum())
    exact = float(mcnemar([[len(first) - changed, lost], [gained, 0]], exact=True).pvalue)
    leading = (exact, MCNEMAR) if len(parts) == len(first) else (p, PERMUTATION)
    return PairedTest(interval, *leading, p, exact, parts, len(first), changed, gained, lost)


def is_binary(scores: Array) -> bool:
    """Whether every score is 0 or 1."""
    return bool(np.isin(scores, (0.0, 1.0)).all())


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected by Holm's step-down procedure (Holm 1979), which holds under any dependence.

    It bounds the chance of a single false positive among the tests. nan stays nan and is no test.
    """
    p = np.array(p_values, dtype=float)
    known = np.isfinite(p)
    if known.any():
        p[known] = multipletests(p[known], method="holm")[1]
    return [float(value) for value in p]


def cluster_codes(videos: "pd.Series[Any]") -> Array:
    """Integer codes from 0 of the samples' videos; a sample whose video is unknown is a cluster of its own."""
    codes, known = pd.factorize(videos)
    unknown = codes < 0
    codes[unknown] = len(known) + np.arange(unknown.sum())
    return codes
