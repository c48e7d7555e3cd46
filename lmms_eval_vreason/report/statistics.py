"""Standard errors and paired tests, by scipy and statsmodels; questions on one video are one observation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

RESAMPLES = 2000
_BATCH_VALUES = 4_000_000  # values that one batch of resamples may hold


@dataclass(frozen=True)
class Interval:
    """A mean difference with its 95% interval and two-sided p-value, of the bootstrap."""

    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class PairedTest:
    """How two runs differ on the samples that both have.

    Attributes:
        difference, low, high: mean of second minus first, and its 95% interval (clustered bootstrap).
        p: of ``test``.
        p_clustered: of the clustered bootstrap.
        test: ``McNemar exact`` for right-or-wrong scores of single runs, else ``clustered bootstrap``.
        samples, clusters: how many were compared; clusters are videos where they are known.
        gained, lost: samples that only the second, only the first run gets right (None unless right-or-wrong).
    """

    difference: float
    low: float
    high: float
    p: float
    p_clustered: float
    test: str
    samples: int
    clusters: int
    gained: int | None
    lost: int | None


def standard_error(scores: np.ndarray, clusters: np.ndarray) -> float:
    """Standard error of the mean, clustered (statsmodels' cluster-robust covariance with its small-sample factor).

    Args:
        scores: (samples,).
        clusters: (samples,) integer codes; all different = the ordinary standard error.

    Returns:
        nan with fewer than two clusters.
    """
    if len(np.unique(clusters)) < 2:
        return float("nan")
    fit = OLS(scores, np.ones(len(scores))).fit(cov_type="cluster", cov_kwds={"groups": clusters})
    return float(fit.bse[0])


def cluster_totals(values: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums and sizes of clusters: (clusters,) each. ``clusters`` are integer codes from 0."""
    return np.bincount(clusters, values), np.bincount(clusters).astype(float)


def bootstrap_means(sums: np.ndarray, sizes: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Means under resampling of whole clusters.

    Args:
        sums, sizes: (…, clusters) totals of the clusters; leading axes are separate data sets.
        resamples: how many.
        seed: of the resampling, so that a report repeats exactly.

    Returns:
        (…, resamples) means, by ``scipy.stats.bootstrap``.
    """
    result = stats.bootstrap(
        (sums, sizes),
        _ratio,
        n_resamples=resamples,
        batch=max(1, _BATCH_VALUES // sums.size),
        paired=True,
        vectorized=True,
        axis=-1,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return result.bootstrap_distribution


def _ratio(sums: np.ndarray, sizes: np.ndarray, axis: int = -1) -> np.ndarray:
    return sums.sum(axis=axis) / sizes.sum(axis=axis)


def percentile_interval(means: np.ndarray, clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """95% bounds from bootstrap means along the last axis: Hesterberg's expanded percentiles.

    Plain percentiles are too narrow for few clusters, by √((n-1)/n) and by the normal in place of Student's t
    (Hesterberg 2014, arXiv 1411.5279, section 4.1.3). The expansion vanishes as clusters grow.
    """
    tail = stats.norm.cdf(np.sqrt(clusters / (clusters - 1)) * stats.t.ppf(0.025, clusters - 1))
    low, high = np.quantile(means, [tail, 1 - tail], axis=-1)
    return low, high


def bootstrap_p(means: np.ndarray) -> np.ndarray:
    """Two-sided p-value of "no difference" from bootstrap means along the last axis: never 0."""
    count = means.shape[-1]
    below, above = (means <= 0).sum(axis=-1), (means >= 0).sum(axis=-1)
    return np.minimum(1.0, 2 * (np.minimum(below, above) + 1) / (count + 1))


def clustered_interval(
    values: np.ndarray, clusters: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Interval, np.ndarray]:
    """Mean of paired differences with its clustered bootstrap interval.

    Args:
        values: (samples,) differences.
        clusters: (samples,) integer codes from 0.

    Returns:
        The interval and the (resamples,) bootstrap means; bounds, p and means are nan with fewer than two clusters.
    """
    sums, sizes = cluster_totals(values, clusters)
    if len(sums) < 2:
        return Interval(float(values.mean()), *([float("nan")] * 3)), np.full(resamples, np.nan)
    means = bootstrap_means(sums, sizes, resamples, seed)
    low, high = percentile_interval(means, len(sums))
    return Interval(float(values.mean()), float(low), float(high), float(bootstrap_p(means))), means


def paired_test(
    first: np.ndarray,
    second: np.ndarray,
    clusters: np.ndarray,
    *,
    single: bool,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[PairedTest, np.ndarray]:
    """Compares two runs sample by sample.

    Args:
        first, second: (samples,) scores in the same order (means over seeds where a label has several).
        clusters: (samples,) integer codes from 0.
        single: whether each side is one run, so that right-or-wrong scores can be tested by McNemar.
        resamples, seed: of the bootstrap.

    Returns:
        The test, and the (resamples,) bootstrap means of the difference.
    """
    interval, means = clustered_interval(second - first, clusters, resamples, seed)
    right_or_wrong = single and is_binary(first) and is_binary(second)
    gained, lost, p, test = None, None, interval.p, "clustered bootstrap"
    if right_or_wrong:
        gained, lost = int(((second == 1) & (first == 0)).sum()), int(((second == 0) & (first == 1)).sum())
        agreed = int((first == second).sum())
        p, test = float(mcnemar([[agreed, lost], [gained, 0]], exact=True).pvalue), "McNemar exact"
    result = PairedTest(
        difference=interval.difference,
        low=interval.low,
        high=interval.high,
        p=p,
        p_clustered=interval.p,
        test=test,
        samples=len(first),
        clusters=len(np.unique(clusters)),
        gained=gained,
        lost=lost,
    )
    return result, means


def is_binary(scores: np.ndarray) -> bool:
    """Whether every score is 0 or 1."""
    return bool(np.isin(scores, (0.0, 1.0)).all())


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction; nan stays nan and is no test."""
    p = np.asarray(p_values, dtype=float)
    corrected = np.full(len(p), np.nan)
    known = np.isfinite(p)
    if known.any():
        corrected[known] = multipletests(p[known], method="holm")[1]
    return corrected.tolist()


def cluster_codes(videos: pd.Series) -> np.ndarray:
    """Integer codes from 0 of the samples' videos; a sample whose video is unknown is a cluster of its own."""
    codes, _ = pd.factorize(videos)
    unknown = codes < 0
    codes[unknown] = codes.max(initial=-1) + 1 + np.arange(unknown.sum())
    return codes
