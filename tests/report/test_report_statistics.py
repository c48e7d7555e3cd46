"""The report's statistics: against scipy and statsmodels called directly, and their coverage in simulations."""

import numpy as np
import pandas as pd
import pytest
from lmms_eval.api.metrics import clustered_stderr
from scipy import stats
from statsmodels.stats.multitest import multipletests

from lmms_eval_vreason.report import statistics
from lmms_eval_vreason.report.coverage import coverage, simulate


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
    interval, means = statistics.clustered_interval(values, clusters, 4000)
    assert interval.difference == pytest.approx(values.mean())
    assert means.mean() == pytest.approx(values.mean(), abs=0.01)
    assert means.std() == pytest.approx(statistics.standard_error(values, clusters), rel=0.1)


def test_bootstrap_is_scipys_on_single_questions():
    rng = np.random.default_rng(1)
    values = rng.normal(0.05, 0.4, 500)
    own = statistics.bootstrap_means(values, np.ones(500), 2000, seed=5)
    direct = stats.bootstrap((values,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(5))
    assert np.allclose(np.quantile(own, [0.025, 0.975]), direct.confidence_interval, atol=2e-3)


def test_mcnemar_is_the_exact_binomial_test():
    first = np.array([1.0] * 30 + [0.0] * 70)
    second = first.copy()
    second[:4], second[30:45] = 0, 1  # 4 lost, 15 gained
    test, _ = statistics.paired_test(first, second, np.arange(100), single=True, resamples=200)
    assert (test.test, test.gained, test.lost) == ("McNemar exact", 15, 4)
    assert test.p == pytest.approx(stats.binomtest(4, 19).pvalue)
    assert test.difference == pytest.approx(0.11)


def test_graded_scores_and_seeds_are_not_tested_by_mcnemar():
    rng = np.random.default_rng(0)
    graded = rng.random(50)
    test, _ = statistics.paired_test(graded, graded + 0.1, np.arange(50), single=True, resamples=200)
    assert test.test == "clustered bootstrap"
    assert test.gained is None
    binary = (graded > 0.5).astype(float)
    seeds, _ = statistics.paired_test(binary, 1 - binary, np.arange(50), single=False, resamples=200)
    assert seeds.test == "clustered bootstrap"


def test_bootstrap_p_agrees_with_the_t_test():
    rng = np.random.default_rng(2)
    values = rng.normal(0.12, 1, 400)
    interval, _ = statistics.clustered_interval(values, np.arange(400), 5000)
    assert interval.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.01)
    assert statistics.clustered_interval(np.zeros(10), np.arange(10), 200)[0].p == 1


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


def test_holm_is_statsmodels_and_passes_nan_over():
    p = [0.01, float("nan"), 0.04, 0.03]
    corrected = statistics.holm(p)
    assert np.isnan(corrected[1])
    assert [corrected[i] for i in (0, 2, 3)] == pytest.approx(list(multipletests([0.01, 0.04, 0.03], method="holm")[1]))
    assert np.isnan(statistics.holm([float("nan")])[0])


def test_unknown_videos_are_clusters_of_their_own():
    codes = statistics.cluster_codes(pd.Series(["a", None, "b", "a", None]))
    assert codes[0] == codes[3]
    assert len(set(codes)) == 4
    assert sorted(set(codes)) == [0, 1, 2, 3]
