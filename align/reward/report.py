"""A reward model's accuracy on held-out pairs, also by length, and its calibration."""

import math
from collections.abc import Sequence
from typing import Any

from align.core.rows import ScoredPair
from align.report.statistics import mean, spearman, wilson_interval, win_rate

# Upper bounds of (chosen - rejected) / longer, in tokens.
LENGTH_BUCKETS = {"chosen shorter": -0.2, "like lengths": 0.2, "chosen longer": 1.0}
CALIBRATION_BINS = 5


def accuracy(pairs: Sequence[ScoredPair]) -> dict[str, Any]:
    """Return the share of pairs whose chosen reply scores higher (ties count one half), with a 95% interval."""
    wins = win_rate([pair.chosen_score for pair in pairs], [pair.rejected_score for pair in pairs])
    low, high = wilson_interval(math.fsum(wins), len(wins)) or (None, None)
    return {"pairs": len(pairs), "accuracy": mean(wins), "accuracy_low": low, "accuracy_high": high}


def by_length(pairs: Sequence[ScoredPair]) -> dict[str, dict[str, Any]]:
    """Return the accuracy in each of `LENGTH_BUCKETS`; a model that merely prefers long replies fails in the first."""
    buckets: dict[str, list[ScoredPair]] = {name: [] for name in LENGTH_BUCKETS}
    for pair in pairs:
        share = (pair.chosen_tokens - pair.rejected_tokens) / max(pair.chosen_tokens, pair.rejected_tokens)
        buckets[next(name for name, high in LENGTH_BUCKETS.items() if share < high)].append(pair)
    return {name: accuracy(members) for name, members in buckets.items()}


def truncation_gap(pairs: Sequence[ScoredPair]) -> float | None:
    """Return how much higher chosen replies score than the same ones cut off, on average; None if all are too short."""
    return mean([pair.chosen_score - score for pair in pairs for score in pair.truncated_scores])


def calibration(pairs: Sequence[ScoredPair]) -> list[dict[str, Any]]:
    """Return, for each bin of predicted win rates from 0.5 to 1, how often the higher-scored reply is the chosen one.

    Its predicted win rate is sigmoid(|score difference|), by the loss's Bradley-Terry model. Pairs with equal scores
    are in the first bin and count one half. Empty bins are left out.
    """
    bins: list[list[tuple[float, float]]] = [[] for _ in range(CALIBRATION_BINS)]
    for pair in pairs:
        margin = pair.chosen_score - pair.rejected_score
        predicted = 1 / (1 + math.exp(-abs(margin)))
        index = min(int((predicted - 0.5) * 2 * CALIBRATION_BINS), CALIBRATION_BINS - 1)
        bins[index].append((predicted, 0.5 if margin == 0 else float(margin > 0)))
    return [
        {
            "predicted": mean([predicted for predicted, _ in members]),
            "observed": mean([won for _, won in members]),
            "pairs": len(members),
        }
        for members in bins
        if members
    ]


def reward_report(pairs: Sequence[ScoredPair]) -> dict[str, Any]:
    """Return all measures of a reward model on held-out pairs.

    `calibration_error` is the mean gap between predicted and observed win rate, weighted by pairs (the expected
    calibration error of Naeini et al., 2015). `score_length_correlation` is Spearman's over all replies,
    `margin_length_correlation` that of a pair's score and length differences, which the prompts' lengths do not affect.
    Correlations of a constant are null.
    """
    gaps_by_bin = [row["pairs"] * abs(row["predicted"] - row["observed"]) for row in calibration(pairs)]
    scores = [score for pair in pairs for score in (pair.chosen_score, pair.rejected_score)]
    lengths = [length for pair in pairs for length in (pair.chosen_tokens, pair.rejected_tokens)]
    margins = [pair.chosen_score - pair.rejected_score for pair in pairs]
    gaps = [pair.chosen_tokens - pair.rejected_tokens for pair in pairs]
    return {
        **accuracy(pairs),
        "mean_margin": mean(margins),
        "truncation_gap": truncation_gap(pairs),
        "by_length": by_length(pairs),
        "calibration_error": math.fsum(gaps_by_bin) / len(pairs),
        "score_length_correlation": spearman(scores, lengths),
        "margin_length_correlation": spearman(margins, gaps),
    }
