"""Does the interval cover? Simulated pairs of runs with a known difference.

Run as ``python tests/report_coverage.py``. Questions on one video share half of the variance of what makes
two runs differ on them.
"""

import numpy as np
from scipy import stats

from lmms_eval_vreason.report import statistics

SIMULATIONS = 1000
CLUSTERS, SIZES = (30, 60, 100, 200, 900), (1, 3, 18)
_GAIN, _LOSS = 0.10, 0.06  # chances that the second run turns a question right, or wrong


def simulate(graded: bool, clusters: int, size: int, seed: int = 0) -> tuple[np.ndarray, float]:
    """Differences of simulated pairs of runs.

    Args:
        graded: scores are real numbers; otherwise right or wrong, where the second run turns some right, some wrong.
        clusters, size: videos, and questions on each.
        seed: of the simulation.

    Returns:
        (simulations, clusters, size) differences, and their true mean.
    """
    rng = np.random.default_rng(seed)
    shape = (SIMULATIONS, clusters, size)
    latent = np.sqrt(0.5) * (rng.standard_normal((*shape[:2], 1)) + rng.standard_normal(shape))
    if size == 1:
        latent = rng.standard_normal(shape)
    if graded:
        return 0.02 + 0.1 * latent, 0.02
    first = rng.random(shape) < 0.5
    second = np.where(latent > stats.norm.isf(_GAIN), True, np.where(latent < stats.norm.ppf(_LOSS), False, first))
    return second.astype(float) - first, 0.5 * (_GAIN - _LOSS)


def coverage(differences: np.ndarray, truth: float, resamples: int = 999) -> float:
    """Share of the simulations whose 95% interval holds the truth.

    Args:
        differences: (simulations, clusters, size).
        truth: the true mean difference.
        resamples: of the bootstrap.
    """
    sums, sizes = differences.sum(axis=2), np.full(differences.shape[:2], float(differences.shape[2]))
    means = statistics.bootstrap_means(sums, sizes, resamples)
    low, high = statistics.percentile_interval(means, differences.shape[1])
    return float(np.mean((low <= truth) & (truth <= high)))


def main() -> None:
    """Prints the table of ``docs/report.md``."""
    print("| videos | questions a video | graded scores | right or wrong |\n| ---: | ---: | ---: | ---: |")
    for clusters in CLUSTERS:
        for size in SIZES:
            shares = [coverage(*simulate(graded, clusters, size)) for graded in (True, False)]
            print(f"| {clusters} | {size} | " + " | ".join(f"{100 * share:.1f}%" for share in shares) + " |")


if __name__ == "__main__":
    main()
