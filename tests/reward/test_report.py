"""What the report on a reward model says of scores whose worth is known."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.core.rows import ScoredPair
from align.reward.report import LENGTH_BUCKETS, accuracy, by_length, calibration, reward_report


def pair(margin: float, chosen_tokens: int = 10, rejected_tokens: int = 10, base: float = 0.0) -> ScoredPair:
    return ScoredPair(
        id="p",
        chosen_score=base + margin,
        rejected_score=base,
        chosen_tokens=chosen_tokens,
        rejected_tokens=rejected_tokens,
    )


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def test_accuracy_counts_a_tie_as_one_half() -> None:
    found = accuracy([pair(2.0), pair(0.1), pair(-1.0), pair(0.0)])
    assert (found["pairs"], found["accuracy"]) == (4, 2.5 / 4)
    assert found["accuracy_low"] < 2.5 / 4 < found["accuracy_high"]


def test_a_model_that_likes_length_alone_fails_where_the_chosen_reply_is_shorter() -> None:
    lengths = [(5, 10), (30, 31), (10, 5), (7, 10), (8, 10), (10, 8), (100, 1)]
    found = by_length([pair(float(c - r), c, r) for c, r in lengths])
    assert list(found) == list(LENGTH_BUCKETS)
    assert found["chosen shorter"] | {"accuracy_low": 0, "accuracy_high": 0} == {
        "pairs": 2,
        "accuracy": 0.0,
        "accuracy_low": 0,
        "accuracy_high": 0,
    }
    assert (found["like lengths"]["pairs"], found["like lengths"]["accuracy"]) == (2, 0.0)
    assert (found["chosen longer"]["pairs"], found["chosen longer"]["accuracy"]) == (3, 1.0)


pairs = st.lists(st.builds(pair, st.floats(-30, 30), st.integers(1, 99), st.integers(1, 99)), min_size=1, max_size=30)


@given(pairs)
def test_every_pair_is_in_one_length_bucket_and_in_one_bin(rows: list[ScoredPair]) -> None:
    assert sum(bucket["pairs"] for bucket in by_length(rows).values()) == len(rows)
    bins = calibration(rows)
    assert sum(row["pairs"] for row in bins) == len(rows)
    assert all(0.5 <= row["predicted"] <= 1 and 0 <= row["observed"] <= 1 for row in bins)
    assert [row["predicted"] for row in bins] == sorted(row["predicted"] for row in bins)


def test_predictions_that_come_true_have_no_calibration_error() -> None:
    margin = logit(0.75)
    found = reward_report([pair(margin)] * 3 + [pair(-margin)])
    assert found["calibration_error"] == pytest.approx(0, abs=1e-12)
    assert calibration([pair(margin)] * 3 + [pair(-margin)]) == [
        {"predicted": pytest.approx(0.75), "observed": 0.75, "pairs": 4}
    ]


def test_overconfidence_is_the_gap_between_prediction_and_outcome() -> None:
    margin = logit(0.95)
    assert reward_report([pair(margin), pair(-margin)])["calibration_error"] == pytest.approx(0.45)


def test_the_length_correlation_within_pairs_is_blind_to_what_the_prompts_do() -> None:
    # Long prompts get long replies and high scores; within a pair the longer reply scores lower.
    rows = [
        ScoredPair(id="p", chosen_score=n + 0.5, rejected_score=n, chosen_tokens=10 * n, rejected_tokens=10 * n + n)
        for n in range(1, 9)
    ] + [pair(-0.5, 9, 5)]
    found = reward_report(rows)
    assert found["score_length_correlation"] > 0.5
    assert found["margin_length_correlation"] < 0


def test_a_correlation_with_a_constant_is_null_and_not_a_number() -> None:
    found = reward_report([pair(0.0), pair(0.0)])
    assert found["score_length_correlation"] is None
    assert found["margin_length_correlation"] is None


def test_the_truncation_gap_is_the_mean_over_all_cut_off_replies_by_hand() -> None:
    cut = pair(1.0).model_copy(update={"chosen_score": 5.0, "truncated_scores": [1.0, 3.0]})
    assert reward_report([cut, pair(1.0)])["truncation_gap"] == 3.0
    assert reward_report([pair(1.0)])["truncation_gap"] is None
