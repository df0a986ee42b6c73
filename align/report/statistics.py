"""Statistics of the report, on plain lists, and the definition of a word."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

_WORD = re.compile(r"\w+")
SCORE_EDGES = [i / 2 for i in range(11)]  # bins of half a point, of judge scores from 0 to 5


def words(text: str) -> list[str]:
    """Return the lower-case words of a text, without punctuation."""
    return _WORD.findall(text.lower())


def mean(values: Sequence[float]) -> float | None:
    """Return the mean, None of no values."""
    return math.fsum(values) / len(values) if values else None


def standard_deviation(values: Sequence[float]) -> float | None:
    """Return the population standard deviation, None of no values."""
    return float(np.std(values)) if values else None


def mode_share(values: Sequence[float], digits: int = 1) -> float | None:
    """Return the share of the most frequent value, rounded to `digits` decimals; None of no values."""
    return Counter(round(value, digits) for value in values).most_common(1)[0][1] / len(values) if values else None


def histogram(values: Sequence[float], edges: Sequence[float]) -> list[int]:
    """Return the number of values in each bin [edges[i], edges[i + 1]); the last bin includes its upper edge."""
    return [int(count) for count in np.histogram(values, edges)[0]]


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation, or None if a side is constant (or has fewer than two values)."""
    if len(set(x)) < 2 or len(set(y)) < 2:
        return None
    ranks = np.column_stack((_ranks(x), _ranks(y)))
    return float(np.corrcoef(ranks, rowvar=False)[1, 0])


def _ranks(values: Sequence[float]) -> np.ndarray:
    """Return the rank of each value, from 1; equal values share the mean of their ranks."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((counts.cumsum() - (counts - 1) / 2)[places])


def kendall(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Return Kendall's rank correlation (tau-b, which allows for ties), or None if a side is constant."""
    if len(set(x)) < 2 or len(set(y)) < 2:
        return None
    above_x, above_y = (np.sign(np.subtract.outer(values, values)) for values in (x, y))
    untied_x, untied_y = np.count_nonzero(above_x) // 2, np.count_nonzero(above_y) // 2
    concordance = int((above_x * above_y).sum()) // 2
    return float(np.clip(concordance / np.sqrt(untied_x) / np.sqrt(untied_y), -1, 1))


def wilson_interval(successes: float, total: int, z: float = 1.959964) -> tuple[float, float] | None:
    """Return the 95% Wilson score interval of a proportion (Wilson, 1927), None if `total` is 0."""
    if total == 0:
        return None
    share = successes / total
    center = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)


def bootstrap_interval(
    groups: Sequence[Sequence[float]], seed: int = 0, resamples: int = 2000
) -> tuple[float, float] | None:
    """Return the 95% percentile bootstrap interval of the mean of all values, None of no values.

    Whole groups are drawn, with replacement, since values of one group (the pairs of one question) are dependent. Give
    independent values a group each.
    """
    sums = np.array([math.fsum(group) for group in groups])
    sizes = np.array([len(group) for group in groups])
    if sizes.sum() == 0:
        return None
    draws = np.random.default_rng(seed).integers(len(groups), size=(resamples, len(groups)))
    totals = sizes[draws].sum(axis=1)
    means = sums[draws].sum(axis=1)[totals > 0] / totals[totals > 0]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def win_rate(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return 1 for each prompt where `ours` scores higher, 0.5 for a tie, 0 for a loss; the mean is the win rate."""
    return [0.5 if a == b else float(a > b) for a, b in zip(ours, theirs, strict=True)]


def distinct_2(texts: Sequence[Sequence[str]]) -> float | None:
    """Return the mean share of distinct word pairs within a text (Li et al., 2016): 1 = no pair occurs twice.

    Texts of fewer than two words do not count.
    """
    return mean([share for text in texts if (share := corpus_distinct_2([text])) is not None])


def corpus_distinct_2(texts: Sequence[Sequence[str]]) -> float | None:
    """Return the share of distinct word pairs in all texts together: 1 = no pair occurs twice, None of no pairs."""
    pairs = [pair for text in texts for pair in pairwise(text)]
    return len(set(pairs)) / len(pairs) if pairs else None


def agreement(
    predicted: Sequence[float | None], human: Sequence[int], groups: Sequence[str]
) -> dict[str, float | int | None]:
    """Measure how a judge's scores agree with the human ones, as in arXiv 2401.10020, section 3.2.

    `exact_match` rounds the prediction. `five_best` is, among responses with a rounded prediction of 5, the share whose
    human score is the highest of their group (None if there is no 5). `pairwise_accuracy` is over pairs within a group
    (question) whose human scores differ, where equal predictions count one half; its interval draws whole groups.
    Spearman and Kendall (tau-b) are means over groups; a group with equal predictions counts 0. Failed judgements
    (None) are counted and otherwise ignored.
    """
    rows = [(p, h, g) for p, h, g in zip(predicted, human, groups, strict=True) if p is not None]
    by_group: dict[str, list[tuple[float, int]]] = {}
    for p, h, g in rows:
        by_group.setdefault(g, []).append((p, h))
    outcomes: list[list[float]] = []
    rank_correlations: list[float] = []
    kendalls: list[float] = []
    for members in by_group.values():
        outcomes.append(
            [
                0.5 if p == q else float((p > q) == (h > k))
                for i, (p, h) in enumerate(members)
                for q, k in members[:i]
                if h != k
            ]
        )
        ours, theirs = zip(*members, strict=True)
        if len(set(theirs)) > 1:
            rank_correlations.append(spearman(ours, theirs) or 0.0)
            kendalls.append(kendall(ours, theirs) or 0.0)
    pairs = [outcome for group in outcomes for outcome in group]
    highest: dict[str, int] = {}
    for h, g in zip(human, groups, strict=True):
        highest[g] = max(h, highest.get(g, 0))
    fives = [float(h == highest[g]) for p, h, g in rows if _rounded(p) == 5]
    low, high = bootstrap_interval(outcomes) or (None, None)
    return {
        "rows": len(rows),
        "failures": len(predicted) - len(rows),
        "pairs": len(pairs),
        "exact_match": mean([float(_rounded(p) == h) for p, h, _ in rows]),
        "five_best": mean(fives),
        "pairwise_accuracy": mean(pairs),
        "pairwise_accuracy_low": low,
        "pairwise_accuracy_high": high,
        "spearman": mean(rank_correlations),
        "kendall": mean(kendalls),
    }


def _rounded(score: float) -> int:
    return math.floor(score + 0.5)
