"""Statistics of two models on the same prompts, on plain numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from align.report.statistics import bootstrap_interval, mean

# With five clusters, all of one sign, the two-sided sign test still has p = 0.06.
MIN_CLUSTERS = 6
POWER_FACTOR = 2.8  # 1.96 + 0.84: the normal quantiles of 5% two-sided and of 80% power
MIN_LENGTH_CONTROLLED = 100
BETTER, WORSE, CANNOT_TELL = "better", "worse", "cannot tell"


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences with its 95% interval; None where too few pairs or clusters define it.

    `detectable` is the smallest true mean that as many such pairs would show in 80% of runs (5%, two-sided). `p` is an
    exact test's, where there is one.
    """

    mean: float | None
    low: float | None
    high: float | None
    pairs: int
    clusters: int
    detectable: float | None
    p: float | None = None

    @property
    def verdict(self) -> str:
        """`better` or `worse` if the interval, and the exact test if there is one, exclude 0."""
        if self.low is None or self.high is None or (self.p is not None and self.p >= 0.05):
            return CANNOT_TELL
        return BETTER if self.low > 0 else WORSE if self.high < 0 else CANNOT_TELL


def paired_difference(clusters: Sequence[Sequence[float]], p: float | None = None) -> Difference:
    """Return the mean of all differences, its bootstrap interval over clusters, and what could be detected.

    A cluster holds the differences that depend on each other, such as the turns of a conversation. Below `MIN_CLUSTERS`
    there is no interval.
    """
    filled = [cluster for cluster in clusters if cluster]
    values = [value for cluster in filled for value in cluster]
    low = high = detectable = None
    if len(filled) >= MIN_CLUSTERS:
        low, high = bootstrap_interval(filled) or (None, None)
        detectable = POWER_FACTOR * standard_error(filled)
    return Difference(mean(values), low, high, len(values), len(filled), detectable, p)


def standard_error(clusters: Sequence[Sequence[float]]) -> float:
    """Return the cluster-robust standard error of the mean of all values; needs two clusters.

    With clusters of one value it is the sample standard deviation over the square root of their number.
    """
    values = [value for cluster in clusters for value in cluster]
    center = math.fsum(values) / len(values)
    squares = math.fsum(math.fsum(value - center for value in cluster) ** 2 for cluster in clusters)
    return math.sqrt(squares * len(clusters) / (len(clusters) - 1)) / len(values)


def mcnemar_p(wins: int, losses: int) -> float:
    """Return the two-sided p of McNemar's exact test, from the numbers of pairs that only one side passes.

    That is the binomial test of `wins` among the discordant pairs against 1/2, twice the smaller tail.
    """
    discordant = wins + losses
    tail = sum(math.comb(discordant, k) for k in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / (1 << discordant))


def length_controlled_win_rate(
    wins: Sequence[float], length_differences: Sequence[float], ridge: float = 0.1
) -> float | None:
    """Return the win rate that a logistic regression predicts between answers of equal length.

    This is the length term of AlpacaEval 2 (arXiv 2404.04475, equation 2): the win (1, 0.5, 0) on an intercept and
    tanh(difference / standard deviation of the differences). `ridge` keeps the weights finite where length separates
    wins from losses. None below `MIN_LENGTH_CONTROLLED` prompts, or if all differences are equal but not 0.
    """
    if len(wins) < MIN_LENGTH_CONTROLLED:
        return None
    won, differences = np.asarray(wins, float), np.asarray(length_differences, float)
    if np.ptp(differences) == 0:
        return float(won.mean()) if differences[0] == 0 else None
    design = np.column_stack((np.ones(len(won)), np.tanh(differences / differences.std())))
    weights = np.zeros(2)
    for _ in range(100):  # Newton's method; the objective is strictly concave
        predicted = 1 / (1 + np.exp(-design @ weights))
        gradient = design.T @ (won - predicted) - ridge * weights
        curvature = (design.T * (predicted * (1 - predicted))) @ design + ridge * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        weights += step
        if np.abs(step).max() < 1e-10:
            break
    return float(1 / (1 + np.exp(-weights[0])))
