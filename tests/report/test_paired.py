"""Statistics of paired comparisons, against values computed by hand and what must hold for any data."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.report.paired import (
    BETTER,
    CANNOT_TELL,
    MIN_CLUSTERS,
    MIN_LENGTH_CONTROLLED,
    WORSE,
    Difference,
    length_controlled_win_rate,
    mcnemar_p,
    paired_difference,
    standard_error,
)

values = st.floats(-5, 5).map(lambda value: round(value, 3))
clusters = st.lists(st.lists(values, min_size=1, max_size=3), min_size=MIN_CLUSTERS, max_size=12)


def difference(low: float | None, high: float | None, p: float | None = None) -> Difference:
    return Difference(0.0, low, high, 9, 9, None, p)


@pytest.mark.parametrize(
    ("low", "high", "p", "verdict"),
    [
        (0.1, 0.3, None, BETTER),
        (-0.3, -0.1, None, WORSE),
        (-0.1, 0.3, None, CANNOT_TELL),
        (0.0, 0.3, None, CANNOT_TELL),
        (-0.3, 0.0, None, CANNOT_TELL),
        (None, None, None, CANNOT_TELL),
        (0.1, 0.3, 0.04, BETTER),
        (-0.3, -0.1, 0.04, WORSE),
        (0.1, 0.3, 0.05, CANNOT_TELL),
    ],
)
def test_a_verdict_needs_an_interval_without_0_and_an_exact_test_that_agrees(
    low: float | None, high: float | None, p: float | None, verdict: str
) -> None:
    assert difference(low, high, p).verdict == verdict


def test_the_standard_error_of_single_values_is_that_of_the_mean() -> None:
    # Deviations -1.5, -0.5, 0.5, 1.5: sample variance 5 / 3, over 4 values.
    assert standard_error([[1.0], [2.0], [3.0], [4.0]]) == pytest.approx(math.sqrt(5 / 3 / 4))


def test_the_standard_error_of_clusters_by_hand() -> None:
    # Mean 2; the clusters' deviations add up to -2 and 2; (4 + 4) * 2 / 1 under the root, over 4 values.
    assert standard_error([[1.0, 1.0], [2.0, 4.0]]) == pytest.approx(math.sqrt(16) / 4)


def test_a_paired_difference_by_hand() -> None:
    found = paired_difference([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0]])
    assert (found.mean, found.pairs, found.clusters) == (3.5, 6, 6)
    assert found.detectable == pytest.approx(2.8 * math.sqrt(3.5 / 6))
    assert found.low is not None
    assert found.high is not None
    # All 6^6 samples, as the bootstrap would draw them.
    means = [sum(draw) / 6 for draw in itertools.product(range(1, 7), repeat=6)]
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.2)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(clusters)
def test_the_two_directions_of_a_comparison_mirror_each_other(groups: list[list[float]]) -> None:
    ours, theirs = paired_difference(groups), paired_difference([[-value for value in group] for group in groups])
    assert (theirs.mean, theirs.low, theirs.high) == pytest.approx(
        (-(ours.mean or 0), -(ours.high or 0), -(ours.low or 0)), abs=1e-9
    )
    assert theirs.detectable == pytest.approx(ours.detectable)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(clusters)
def test_turns_that_are_copies_widen_the_interval_as_if_there_were_half_as_many(groups: list[list[float]]) -> None:
    single = [[group[0]] for group in groups]
    copied = paired_difference([group * 2 for group in single])
    apart = paired_difference([[group[0]] for group in groups for _ in range(2)])
    assert copied.detectable == pytest.approx(paired_difference(single).detectable, abs=1e-9)
    assert copied.detectable is not None
    assert apart.detectable is not None
    if len({group[0] for group in single}) > 1:
        assert copied.detectable > 1.3 * apart.detectable


def test_the_interval_of_copied_turns_is_that_of_their_conversations() -> None:
    single = [[float(i % 3)] for i in range(20)]
    copied, apart = paired_difference([group * 4 for group in single]), paired_difference(single * 4)
    assert (copied.low, copied.high) == pytest.approx((paired_difference(single).low, paired_difference(single).high))
    assert (copied.high or 0) - (copied.low or 0) > 1.7 * ((apart.high or 0) - (apart.low or 0))


def test_equal_models_are_not_told_apart() -> None:
    found = paired_difference([[0.0]] * 50)
    assert (found.mean, found.low, found.high, found.verdict) == (0.0, 0.0, 0.0, CANNOT_TELL)


def test_of_models_that_are_equal_on_average_about_one_comparison_in_twenty_tells_them_apart() -> None:
    noise = np.random.default_rng(1).normal(size=(200, 40))
    told = sum(paired_difference([[float(value)] for value in row]).verdict != CANNOT_TELL for row in noise)
    assert 2 <= told <= 22  # 5% are 10; the percentile bootstrap of 40 values has about 6%


def test_the_detectable_difference_is_found_in_about_four_of_five_evaluations() -> None:
    generator = np.random.default_rng(2)
    shift = 2.8 / math.sqrt(60)
    rows = generator.normal(shift, 1.0, size=(200, 60))
    found = [paired_difference([[float(value)] for value in row]) for row in rows]
    assert np.mean([one.detectable for one in found if one.detectable]) == pytest.approx(shift, rel=0.03)
    assert 0.72 < sum(one.verdict == BETTER for one in found) / 200 < 0.88


@pytest.mark.parametrize("count", range(MIN_CLUSTERS + 1))
def test_too_few_clusters_have_no_interval_and_tell_nothing(count: int) -> None:
    found = paired_difference([[1.0, 1.0]] * count + [[]] * 9)
    assert (found.pairs, found.clusters) == (2 * count, count)
    assert found.mean == (1.0 if count else None)
    assert (found.low is None) == (found.detectable is None) == (count < MIN_CLUSTERS)
    assert found.verdict == (BETTER if count >= MIN_CLUSTERS else CANNOT_TELL)


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 0, 2 / 32),
        (6, 0, 2 / 64),
        (8, 1, 2 * (1 + 9) / 512),
        (3, 3, 1.0),
    ],
)
def test_mcnemars_exact_p_by_hand(wins: int, losses: int, p: float) -> None:
    assert mcnemar_p(wins, losses) == pytest.approx(p)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(0, 6), st.integers(0, 6))
def test_mcnemars_exact_p_is_the_share_of_all_coin_tosses_that_are_as_uneven(wins: int, losses: int) -> None:
    tosses = [sum(draw) for draw in itertools.product((0, 1), repeat=wins + losses)]
    as_uneven = [abs(2 * heads - wins - losses) >= abs(wins - losses) for heads in tosses]
    assert mcnemar_p(wins, losses) == pytest.approx(sum(as_uneven) / len(tosses))
    assert mcnemar_p(wins, losses) == mcnemar_p(losses, wins)


def test_mcnemars_p_of_thousands_of_pairs_is_a_number() -> None:
    # The normal approximation with continuity correction: z = (2200 - 1800 - 1) / sqrt(4000) = 6.309.
    assert mcnemar_p(2200, 1800) == pytest.approx(math.erfc(6.309 / math.sqrt(2)), rel=0.05)


def of_length(
    generator: np.random.Generator, count: int, skill: float, taste: float
) -> tuple[list[float], list[float]]:
    """Draw wins whose log-odds are `skill`, plus `taste` times tanh of the standardized difference in length."""
    differences = generator.normal(30, 40, count)
    logits = skill + taste * np.tanh(differences / differences.std())
    return list((generator.random(count) < 1 / (1 + np.exp(-logits))).astype(float)), list(differences)


def test_below_100_prompts_there_is_no_length_controlled_win_rate() -> None:
    count = MIN_LENGTH_CONTROLLED - 1
    assert length_controlled_win_rate([1.0] * count, [0.0] * count) is None
    assert length_controlled_win_rate([1.0] * 75 + [0.0] * 25, [0.0] * 100) == 0.75


def test_wins_that_length_explains_are_taken_out() -> None:
    wins, differences = of_length(np.random.default_rng(3), 4000, 0.0, 2.0)
    assert sum(wins) / 4000 > 0.65
    assert length_controlled_win_rate(wins, differences) == pytest.approx(0.5, abs=0.03)


def test_wins_that_length_does_not_explain_stay() -> None:
    wins, differences = of_length(np.random.default_rng(4), 4000, 1.0, 0.0)
    assert length_controlled_win_rate(wins, differences) == pytest.approx(1 / (1 + math.exp(-1)), abs=0.03)


def test_the_length_controlled_win_rate_of_two_lengths_by_hand() -> None:
    # Equally often shorter and longer by 1: the fit gives the logits of 0.2 and 0.9 to the sides, 0 is their middle.
    wins = [1.0] * 100 + [0.0] * 400 + [1.0] * 450 + [0.0] * 50
    middle = (math.log(0.2 / 0.8) + math.log(0.9 / 0.1)) / 2
    found = length_controlled_win_rate(wins, [-1.0] * 500 + [1.0] * 500, ridge=1e-9)
    assert found == pytest.approx(1 / (1 + math.exp(-middle)), abs=1e-6)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.floats(-3, 3), st.floats(-9, 9))
def test_the_length_controlled_win_rates_of_two_sides_add_up_to_one(seed: int, skill: float, taste: float) -> None:
    wins, differences = of_length(np.random.default_rng(seed), 120, skill, taste)
    ours = length_controlled_win_rate(wins, differences)
    theirs = length_controlled_win_rate([1 - win for win in wins], [-value for value in differences])
    assert ours is not None
    assert theirs == pytest.approx(1 - ours, abs=1e-9)
    assert length_controlled_win_rate(wins[::-1], differences[::-1]) == pytest.approx(ours, abs=1e-9)


def test_wins_that_length_separates_have_a_finite_win_rate() -> None:
    differences = [float(value) for value in range(-60, 60)]
    found = length_controlled_win_rate([float(value > 0) for value in differences], differences)
    assert found == pytest.approx(0.5, abs=0.05)
    assert 0.9 < (length_controlled_win_rate([1.0] * 120, differences) or 0) < 1


def test_where_all_answers_are_longer_by_the_same_length_cannot_be_taken_out() -> None:
    assert length_controlled_win_rate([1.0, 0.0] * 60, [7.0] * 120) is None
