import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.report.statistics import (
    agreement,
    bootstrap_interval,
    corpus_distinct_2,
    distinct_2,
    histogram,
    kendall,
    mean,
    mode_share,
    spearman,
    standard_deviation,
    wilson_interval,
    win_rate,
)

numbers = st.floats(-100, 100)
groups = st.lists(st.lists(numbers, min_size=1, max_size=4), min_size=1, max_size=6)
scores = st.sampled_from([0.0, 1.0, 2.5, 5.0])


def test_the_mean_of_nothing_is_nothing() -> None:
    assert mean([]) is None
    assert mean([0.1] * 10) == pytest.approx(0.1, rel=1e-15)


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [
        # 8 of 10: center 0.8 + 3.841459 / 20, spread 1.959964 * sqrt(0.016 + 3.841459 / 400), both over 1.3841459.
        (8, 10, 0.490162, 0.943318),
        (2, 10, 0.056682, 0.509838),
        (0, 10, 0.0, 0.277533),
        (10, 10, 0.722467, 1.0),
        (48, 96, 0.401924, 0.598076),
    ],
)
def test_the_wilson_interval_by_hand(successes: int, total: int, low: float, high: float) -> None:
    assert wilson_interval(successes, total) == pytest.approx((low, high), abs=1e-6)


def test_the_wilson_interval_of_nothing_is_nothing() -> None:
    assert wilson_interval(0, 0) is None


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.integers(1, 200).flatmap(lambda total: st.tuples(st.integers(0, 2 * total), st.just(total))))
def test_the_wilson_interval_holds_the_share_and_mirrors(counts: tuple[int, int]) -> None:
    halves, total = counts
    low, high = wilson_interval(halves / 2, total) or (2.0, -1.0)
    mirrored = wilson_interval(total - halves / 2, total)
    assert 0 <= low <= halves / 2 / total + 1e-12
    assert halves / 2 / total - 1e-12 <= high <= 1
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(groups)
def test_the_bootstrap_interval_is_deterministic_and_within_the_values(groups: list[list[float]]) -> None:
    interval = bootstrap_interval(groups, seed=3, resamples=50)
    assert interval is not None
    assert interval == bootstrap_interval(groups, seed=3, resamples=50)
    values = [value for group in groups for value in group]
    assert min(values) - 1e-9 <= interval[0] <= interval[1] <= max(values) + 1e-9


def test_the_bootstrap_draws_whole_groups() -> None:
    zeros, ones = [0.0] * 50, [1.0] * 50
    assert bootstrap_interval([zeros, ones]) == (0.0, 1.0)
    low, high = bootstrap_interval([[value] for value in zeros + ones]) or (0.0, 1.0)
    assert 0.35 < low < 0.45
    assert 0.55 < high < 0.65


def test_the_bootstrap_interval_of_a_large_sample_is_the_normal_one() -> None:
    # The standard error of 400 fair coins is 0.5 / 20 = 0.025, so the interval is 0.5 +- 0.049.
    interval = bootstrap_interval([[float(i % 2)] for i in range(400)])
    assert interval == pytest.approx((0.451, 0.549), abs=0.008)


@pytest.mark.parametrize("nothing", [[], [[]], [[], []]])
def test_the_bootstrap_interval_of_nothing_is_nothing(nothing: list[list[float]]) -> None:
    assert bootstrap_interval(nothing) is None


def test_empty_groups_add_nothing_to_the_bootstrap() -> None:
    assert bootstrap_interval([[2.0], [], []]) == (2.0, 2.0)


def test_a_win_is_one_a_tie_a_half_and_a_loss_zero() -> None:
    assert win_rate([3.0, 2.0, 1.0], [1.0, 2.0, 3.0]) == [1.0, 0.5, 0.0]


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.lists(st.tuples(scores, scores), min_size=1))
def test_the_win_rates_of_two_sides_add_up_to_one(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = zip(*pairs, strict=True)
    assert [a + b for a, b in zip(win_rate(ours, theirs), win_rate(theirs, ours), strict=True)] == [1.0] * len(pairs)


def test_sides_of_different_length_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="shorter"):
        win_rate([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("texts", "share"),
    [
        (["a b a b"], 2 / 3),
        (["a a a a a"], 1 / 4),
        (["a b c d"], 1.0),
        (["a b a b", "a b c"], (2 / 3 + 1) / 2),
        (["a b", "", "a"], 1.0),
        (["", "a"], None),
        ([], None),
    ],
)
def test_distinct_2_is_the_mean_share_of_distinct_word_pairs(texts: list[str], share: float | None) -> None:
    assert distinct_2([text.split() for text in texts]) == pytest.approx(share)


def test_a_perfect_judge_agrees_in_everything() -> None:
    human = [0, 2, 5, 1, 4]
    result = agreement([float(score) for score in human], human, ["a", "a", "a", "b", "b"])
    assert result == {
        "rows": 5,
        "failures": 0,
        "pairs": 4,
        "exact_match": 1.0,
        "five_best": 1.0,
        "pairwise_accuracy": 1.0,
        "pairwise_accuracy_low": 1.0,
        "pairwise_accuracy_high": 1.0,
        "spearman": pytest.approx(1.0),
        "kendall": pytest.approx(1.0),
    }


def test_an_inverted_judge_agrees_in_nothing() -> None:
    result = agreement([5.0, 3.0, 0.0], [0, 2, 5], ["a"] * 3)
    assert (result["pairwise_accuracy"], result["exact_match"]) == (0.0, 0.0)
    assert (result["spearman"], result["kendall"]) == pytest.approx((-1.0, -1.0))


def test_a_constant_judge_is_right_by_chance_and_correlates_with_nothing() -> None:
    result = agreement([3.0] * 3, [0, 3, 5], ["a"] * 3)
    assert (result["pairwise_accuracy"], result["spearman"], result["kendall"]) == (0.5, 0.0, 0.0)
    assert result["exact_match"] == pytest.approx(1 / 3)


def test_agreement_by_hand() -> None:
    # One of three pairs in order; ranks 3 2 1 against 2 1 3: rho = 1 - 6 * 6 / 24, tau = (1 - 2) / 3.
    result = agreement([3.4, 2.6, 2.5], [3, 2, 4], ["a"] * 3)
    assert result["pairwise_accuracy"] == pytest.approx(1 / 3)
    assert result["exact_match"] == pytest.approx(1 / 3)
    assert result["spearman"] == pytest.approx(-0.5)
    assert result["kendall"] == pytest.approx(-1 / 3)


def test_a_half_is_rounded_up() -> None:
    assert agreement([2.5, 0.5], [3, 1], ["a", "b"])["exact_match"] == 1.0


def test_only_pairs_of_one_question_with_different_human_scores_count() -> None:
    result = agreement([1.0, 5.0, 2.0, 0.0], [3, 3, 4, 5], ["a", "a", "b", "c"])
    assert (result["pairs"], result["pairwise_accuracy"], result["spearman"]) == (0, None, None)


def test_failed_judgements_are_counted_and_take_no_part() -> None:
    whole = agreement([1.0, 4.0], [1, 4], ["a", "a"])
    failing = agreement([1.0, None, 4.0, None], [1, 5, 4, 0], ["a", "a", "a", "b"])
    assert failing == {**whole, "failures": 2}


def test_a_judge_that_always_fails_has_no_figures() -> None:
    result = agreement([None, None], [1, 2], ["a", "a"])
    assert (result.pop("rows"), result.pop("failures"), result.pop("pairs")) == (0, 2, 0)
    assert set(result.values()) == {None}


def test_five_best_asks_whether_what_the_judge_gives_a_five_is_the_best_of_its_question() -> None:
    # Fives: a's best, a's second, b's best with a human 3; the 4.4 of b is no five.
    result = agreement([5.0, 4.6, 4.5, 4.4], [5, 4, 3, 2], ["a", "a", "b", "b"])
    assert result["five_best"] == pytest.approx(2 / 3)
    assert agreement([4.4, 1.0], [5, 4], ["a", "a"])["five_best"] is None


def test_the_mode_share_counts_scores_that_agree_to_one_decimal() -> None:
    assert mode_share([1.01, 1.04, 0.96, 2.0]) == pytest.approx(0.75)
    assert mode_share([]) is None


def test_the_standard_deviation_is_the_populations() -> None:
    assert standard_deviation([1.0, 3.0]) == pytest.approx(1.0)
    assert standard_deviation([]) is None


def test_a_histogram_counts_every_value_once_and_the_upper_edge_in_the_last_bin() -> None:
    assert histogram([0.0, 0.5, 0.99, 4.9, 5.0], [0.0, 0.5, 1.0, 4.5, 5.0]) == [1, 2, 0, 2]


def test_word_pairs_that_two_texts_share_lower_the_diversity_of_both() -> None:
    texts = [["a", "b", "c"], ["a", "b", "d"]]
    assert corpus_distinct_2(texts) == pytest.approx(3 / 4)
    assert corpus_distinct_2([["a"], []]) is None


def test_spearman_of_a_constant_is_none() -> None:
    assert spearman([1.0, 1.0], [1.0, 2.0]) is None
    assert spearman([1.0, 2.0, 3.0], [1.0, 4.0, 9.0]) == pytest.approx(1.0)


def test_rank_correlations_of_ties() -> None:
    x, y = [12.0, 2.0, 1.0, 12.0, 2.0], [1.0, 4.0, 7.0, 1.0, 0.0]
    # Ranks 4.5 2.5 1 4.5 2.5 and 2.5 4 5 2.5 1: products sum to -5, squares to 9 and 9.5.
    assert spearman(x, y) == pytest.approx(-5 / math.sqrt(9 * 9.5))
    # Of ten pairs two are concordant and six discordant; two are ties in x, one of them and no other in y.
    assert kendall(x, y) == pytest.approx((2 - 6) / math.sqrt(8 * 9))
    assert kendall(x, [1.0] * 5) is None
