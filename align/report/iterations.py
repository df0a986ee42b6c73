"""Tables of the self-rewarding loop: the counts of each iteration and the distribution of scores."""

from collections.abc import Mapping, Sequence
from typing import Any

from align.core.rows import Answer
from align.report.statistics import SCORE_EDGES, histogram

AS_JUDGE = (
    "pairwise_accuracy",
    "pairwise_accuracy_low",
    "pairwise_accuracy_high",
    "exact_match",
    "five_best",
    "spearman",
    "kendall",
    "failures",
)


def loop_row(
    model: str, prompts: Mapping[str, Any], scores: Mapping[str, Any], pairs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return an iteration's row of loop.csv from data/metrics/<model>/*.json."""
    judge, relevance = scores["as_judge"] or {}, scores["relevance"] or {}
    return {
        "model": model,
        "judge": scores["judge"],
        "prompts": prompts["accepted"],
        "prompts_dropped": sum(prompts["dropped"].values()),
        "prompt_words": prompts["mean_words"],
        "nearest_known_rouge_l": prompts["nearest_known_rouge_l"],
        "prompts_distinct_2": prompts["distinct_2"],
        "responses": scores["rows"],
        "mean_score": scores["mean_score"],
        "score_std": scores["std"],
        "mode_share": scores["mode_share"],
        "failed_judgements": sum(scores["failures"].values()),
        **{f"judge_{key}": judge.get(key) for key in AS_JUDGE},
        "judge_relevance": relevance.get("accuracy"),
        "score_length_correlation": scores["score_length_correlation"],
        "pairs": pairs["pairs"],
        "pair_yield": pairs["pair_yield"],
        "mean_margin": pairs["mean_margin"],
        "words_chosen": pairs["mean_words_chosen"],
        "words_rejected": pairs["mean_words_rejected"],
        "margin_length_correlation": pairs["margin_length_correlation"],
        "accepted": pairs["accepted"],
        "ift_rows": pairs["ift"],
    }


def bin_label(low: float) -> str:
    """Return the name of the bin that starts at `low`."""
    return f"{low:.1f}-{low + 0.5:.1f}"


def score_histogram(answers: Mapping[str, Sequence[Answer]]) -> list[dict[str, Any]]:
    """Return, for each bin of judge scores, its label and each model's share of judged answers."""
    counts = {
        name: histogram([row.judge_score for row in rows if row.judge_score is not None], SCORE_EDGES)
        for name, rows in answers.items()
    }
    return [
        {"score": bin_label(low)} | {name: bins[i] / (sum(bins) or 1) for name, bins in counts.items()}
        for i, low in enumerate(SCORE_EDGES[:-1])
    ]


def score_rows(answers: Mapping[str, Sequence[Answer]]) -> list[dict[str, Any]]:
    """Return model and score bin of each judged answer, for a heat map that counts rows."""
    return [
        {"model": name, "score": bin_label(min(int(row.judge_score * 2), 9) / 2)}
        for name, rows in answers.items()
        for row in rows
        if row.judge_score is not None
    ]
