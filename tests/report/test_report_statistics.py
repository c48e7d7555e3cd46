"""The report's statistics: against scipy and statsmodels called directly, and their coverage in simulations."""

import gc

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lmms_eval.api.metrics import clustered_stderr
from report_coverage import coverage, simulate
from scipy import stats
from statsmodels.stats.multitest import multipletests

from lmms_eval_vreason.report import statistics


@pytest.fixture(scope="module", autouse=True)
def quick_garbage_collection():
    """statsmodels collects garbage at each correction: 50 ms, and far more beside a loaded torch."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize(
    ("graded", "clusters", "size"), [(True, 60, 1), (True, 60, 3), (True, 60, 18), (False, 200, 1), (False, 200, 3)]
)
def test_interval_covers_the_known_difference(graded, clusters, size):
    assert 0.93 <= coverage(*simulate(graded, clusters, size)) <= 0.97


def test_interval_that_ignores_videos_would_not_cover():
    """The simulation has teeth: the same interval over single questions misses too often."""
    differences, truth = simulate(True, 60, 3)
    assert coverage(differences.reshape(len(differences), -1, 1), truth) < 0.9


def test_uneven_clusters_weigh_by_their_questions():
    rng = np.random.default_rng(3)
    clusters = np.repeat(np.arange(40), rng.integers(1, 20, 40))
    values = rng.normal(0.1, 1, len(clusters))
    interval = statistics.clustered_interval(values, clusters, 4000)
    means = interval.means
    assert interval.difference == pytest.approx(values.mean())
    assert means.mean() == pytest.approx(values.mean(), abs=0.01)
    assert means.std() == pytest.approx(statistics.standard_error(values, clusters), rel=0.1)


def test_bootstrap_is_scipys_on_single_questions():
    rng = np.random.default_rng(1)
    values = rng.normal(0.05, 0.4, 500)
    own = statistics.bootstrap_means(values, np.ones(500), 2000, seed=5)
    direct = stats.bootstrap((values,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(5))
    assert np.allclose(np.quantile(own, [0.025, 0.975]), direct.confidence_interval, atol=2e-3)


def paired(first, second, clusters, **options):
    interval = statistics.clustered_interval(second - first, clusters, 500)
    return statistics.paired_test(first, second, clusters, interval, **options)


def test_mcnemar_is_the_exact_binomial_test():
    first = np.array([1.0] * 30 + [0.0] * 70)
    second = first.copy()
    second[:4], second[30:45] = 0, 1  # 4 lost, 15 gained
    test = paired(first, second, np.arange(100))
    assert (test.test, test.gained, test.lost, test.changed) == ("McNemar exact", 15, 4, 19)
    assert test.p == test.p_mcnemar == pytest.approx(stats.binomtest(4, 19).pvalue)
    assert test.interval.difference == pytest.approx(0.11)
    assert (test.samples, test.clusters) == (100, 100)
    assert test.parts.tolist() == ((second - first) / 100).tolist()


def test_graded_scores_and_seeds_are_not_tested_by_mcnemar():
    rng = np.random.default_rng(0)
    graded = rng.random(50)
    second = graded + np.where(graded > 0.3, 0.1 * rng.random(50), 0)
    videos = np.arange(50) // 2
    test = paired(graded, second, videos)
    assert test.test == "paired permutation"
    assert (test.gained, test.lost, test.samples, test.clusters) == (None, None, 50, 25)
    assert test.changed == (graded > 0.3).sum()
    assert np.isnan(test.p_mcnemar)
    assert test.parts == pytest.approx((second - graded).reshape(25, 2).sum(axis=1) / 50)
    assert test.parts.sum() == pytest.approx(test.interval.difference) == (second - graded).mean()
    # As many patterns as the interval has resamples.
    assert test.p == test.p_clustered == statistics.permutation_p(test.parts, 500)
    binary = (graded > 0.5).astype(float)
    assert paired(binary, 1 - binary, np.arange(50), single_runs=False).test == "paired permutation"


def test_questions_on_one_video_are_not_tested_by_mcnemar():
    first = np.zeros(40)
    second = np.array([1.0] * 20 + [0.0] * 20)
    test = paired(first, second, np.arange(40) // 10)  # two of four videos gain all their questions
    assert test.test == "paired permutation"
    assert test.p == test.p_clustered == 0.5
    assert test.p_mcnemar == pytest.approx(2 * 0.5**20)


@settings(deadline=None)
@given(st.integers(0, 5), st.integers(0, 5))
def test_permutation_test_is_mcnemars_on_single_questions(gained, lost):
    parts = np.array([1.0] * gained + [-1.0] * lost + [0.0] * 5) / 30
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert statistics.permutation_p(parts, 2**11) == pytest.approx(expected)


@pytest.mark.parametrize("size", [1, 18])
def test_permutation_test_keeps_its_level_where_mcnemar_does_not(size):
    """200 pairs of runs without a difference on 60 videos, whose questions share half of the variance."""
    rng = np.random.default_rng(7)
    noise = [rng.standard_normal((200, 60, questions)) for questions in (1, size)]
    latent = np.sqrt(0.5) * (noise[0] + noise[1])
    differences = (latent > 1.28).astype(int) - (latent < -1.28).astype(int)
    exact = [stats.binomtest(int((d > 0).sum()), int((d != 0).sum())).pvalue for d in differences]
    clustered = [statistics.permutation_p(d.sum(axis=1) / d.size, 300) for d in differences]
    assert np.mean(np.array(clustered) < 0.05) <= 0.08
    assert (np.mean(np.array(exact) < 0.05) > 0.2) == (size == 18)


def test_permutation_p_agrees_with_the_t_test():
    rng = np.random.default_rng(2)
    values = rng.normal(0.12, 1, 400)
    assert statistics.permutation_p(values / 400, 5000) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.01)
    assert statistics.permutation_p(np.zeros(10)) == 1
    assert statistics.permutation_p(np.array([0.3])) == 1  # one video says nothing


def test_permutation_test_counts_equal_sums_as_equal():
    """In floating point 0.1 + 0.2 - 0.3 is 5.6e-17, and sums of the same numbers depend on their order."""
    assert statistics.permutation_p(np.array([0.1, 0.5, 0.3, -0.4, -0.5])) == 1
    assert statistics.permutation_p(np.array([0.1, 0.2, 0.3])) == 2 / 8
    assert statistics.permutation_p(1e-10 * np.array([0.1, 0.2, 0.3])) == 2 / 8  # whatever their scale
    # Of 32 patterns one has the sum 0.7, and four (one of the 0.1 turned) have 0.5.
    assert statistics.permutation_p(np.array([0.1, 0.1, 0.1, -0.1, 0.3])) == 2 * 5 / 32


@pytest.mark.parametrize(
    ("values", "clusters"),
    [(np.zeros(10), np.arange(10)), (np.full(10, 0.1), np.arange(10) // 3), (np.array([1.0, 0, -1]), np.zeros(3, int))],
)
def test_no_interval_where_nothing_spreads(values, clusters):
    interval = statistics.clustered_interval(values, clusters, 200)
    assert interval.difference == pytest.approx(values.mean())
    assert np.isnan([interval.low, interval.high]).all()
    assert interval.means.shape == (200,)
    assert len(set(clusters)) > 1 or np.isnan(interval.means).all()


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1, width=16), min_size=2, max_size=40), st.floats(0.5, 100))
def test_interval_scales_with_the_scores_and_holds_the_difference(values, scale):
    values = np.array(values)
    one, scaled = (statistics.clustered_interval(f * values, np.arange(len(values)), 200) for f in (1.0, scale))
    if np.ptp(values) > 1e-3:
        assert one.low <= one.difference + 1e-9
        assert one.high >= one.difference - 1e-9
        assert [scaled.low, scaled.high] == pytest.approx([scale * one.low, scale * one.high])


def test_standard_errors_agree_with_scipy_and_with_lmms_eval():
    rng = np.random.default_rng(4)
    clusters = np.repeat(np.arange(50), 3)
    scores = (rng.normal(size=50)[clusters] + rng.normal(size=150) > 0).astype(float)
    single = statistics.standard_error(scores, np.arange(150))
    assert single == pytest.approx(stats.sem(scores), rel=1e-3)
    # lmms-eval divides by n where statsmodels has the small-sample factor of clusters.
    factor = np.sqrt(50 / 49 * 149 / 149)
    assert statistics.standard_error(scores, clusters) == pytest.approx(
        factor * clustered_stderr(scores.tolist(), clusters.tolist()), rel=5e-3
    )
    assert np.isnan(statistics.standard_error(scores[:3], clusters[:3]))
    two = np.array([0.0, 0, 1, 1])  # √(2 · (1 + 1)) / 4 for two clusters whose sums are 1 off the mean
    assert statistics.standard_error(two, np.array([0, 0, 1, 1])) == pytest.approx(0.5)


def test_holm_is_statsmodels_and_passes_nan_over():
    p = [0.01, float("nan"), 0.04, 0.03]
    corrected = statistics.holm(p)
    assert np.isnan(corrected[1])
    assert [corrected[i] for i in (0, 2, 3)] == pytest.approx(list(multipletests([0.01, 0.04, 0.03], method="holm")[1]))
    assert np.isnan(statistics.holm([float("nan")])[0])


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(p):
    given_p = np.array(p)
    corrected = np.array(statistics.holm(given_p))
    assert (corrected >= given_p).all()
    assert corrected[given_p.argmin()] == pytest.approx(min(1, len(p) * given_p.min()))
    assert (np.diff(corrected[given_p.argsort()]) >= 0).all()
    assert given_p.tolist() == p


def test_unknown_videos_are_clusters_of_their_own():
    codes = statistics.cluster_codes(pd.Series(["a", None, "b", "a", None]))
    assert codes[0] == codes[3]
    assert len(set(codes)) == 4
    assert sorted(set(codes)) == [0, 1, 2, 3]
    assert statistics.cluster_codes(pd.Series([None, None])).tolist() == [0, 1]
    assert statistics.cluster_codes(pd.Series([])).tolist() == []


def test_a_report_repeats_exactly_and_another_seed_gives_another():
    rng = np.random.default_rng(5)
    values, clusters = rng.normal(0.1, 1, 30), np.arange(30)
    seeds = ({}, {}, {"seed": 1})
    first, again, other = (statistics.clustered_interval(values, clusters, 300, **seed) for seed in seeds)
    assert first.means.tolist() == again.means.tolist() != other.means.tolist()
    assert first.means.tolist() == statistics.bootstrap_means(values, np.ones(30), 300).tolist()
    p = [statistics.permutation_p(values / 30, 300, seed) for seed in range(5)]
    assert statistics.permutation_p(values / 30, 300) == p[0]
    assert len(set(p)) > 1
    assert statistics.permutation_p(np.full(40, 0.025), 300) == pytest.approx(2 / 301)


def test_the_percentiles_are_expanded_by_hesterbergs_rule():
    """Of evenly spread means the bounds are the tails themselves."""
    low, high = statistics.percentile_interval(np.linspace(0, 1, 100_001), 5)
    tail = stats.norm.cdf(np.sqrt(5 / 4) * stats.t.ppf(0.025, df=4))
    assert (low, high) == pytest.approx((tail, 1 - tail))
    assert tail < 0.025


@pytest.mark.parametrize(("around", "spread"), [(1.0, 1e-7), (0.0, 1e-10)])
def test_a_small_spread_is_one(around, spread):
    values = around + spread * np.random.default_rng(0).normal(size=40)
    interval = statistics.clustered_interval(values, np.arange(40), 200)
    assert interval.low < interval.difference < interval.high
