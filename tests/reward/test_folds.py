"""The benchmark that compares reward model and word counts: whole conversations in a fold, and a paired difference."""

import pytest

from align.core.rows import PreferencePair, ScoredPair
from align.core.split import conversation_key
from align.data.preferences import read_preferences
from benchmarks.bag_of_words import PENALTIES, fold_numbers, preference_margins
from benchmarks.reward_folds import FOLDS, SEED_PAIRS, compare, split
from tests.committed import COMMITTED


@pytest.fixture(scope="module")
def pairs() -> list[PreferencePair]:
    return read_preferences(COMMITTED / SEED_PAIRS)[0]


def test_every_pair_is_tested_once_and_no_conversation_is_trained_on_and_tested(pairs: list[PreferencePair]) -> None:
    tested = []
    for fold in range(FOLDS):
        train, test = split(pairs, fold)
        assert not {conversation_key(pair.messages) for pair in train} & {
            conversation_key(pair.messages) for pair in test
        }
        assert len(train) + len(test) == len(pairs)
        assert abs(len(test) - len(pairs) / FOLDS) < 0.05 * len(pairs)
        tested += test
    assert sorted(pair.id for pair in tested) == sorted(pair.id for pair in pairs)


def test_turns_of_one_conversation_are_in_one_fold(pairs: list[PreferencePair]) -> None:
    again = [pair.model_copy(update={"id": f"{pair.id}-again"}) for pair in reversed(pairs)]
    for fold in range(FOLDS):
        train, test = split([*pairs, *again], fold)
        assert not {conversation_key(pair.messages) for pair in train} & {
            conversation_key(pair.messages) for pair in test
        }


def test_ridge_predicts_a_pair_from_the_other_folds_alone(pairs: list[PreferencePair]) -> None:
    # If its own fold told ridge which reply is chosen, then a swap of the fold's replies would go unnoticed.
    _, test = split(pairs, 0)
    ids = {pair.id for pair in test}
    swapped = [
        pair.model_copy(update={"chosen": pair.rejected, "rejected": pair.chosen}) if pair.id in ids else pair
        for pair in pairs
    ]
    folds = fold_numbers([conversation_key(pair.messages) for pair in pairs], FOLDS)
    before, after = (preference_margins(rows, folds, PENALTIES[0]) for rows in (pairs, swapped))
    for pair, a, b in zip(pairs, before, after, strict=True):
        if pair.id in ids:
            assert b == pytest.approx(-a)


def test_the_difference_is_over_the_same_pairs_and_averages_the_seeds(pairs: list[PreferencePair]) -> None:
    four = pairs[:4]

    def scores(*margins: float) -> dict[str, ScoredPair]:
        return {
            pair.id: ScoredPair(id=pair.id, chosen_score=m, rejected_score=0.0, chosen_tokens=3, rejected_tokens=3)
            for pair, m in zip(four, margins, strict=True)
        }

    result = compare(four, [scores(1, 1, 1, -1), scores(1, 1, 0, -1)], [1.0, -1.0, 2.0, -0.5])
    assert result["rm_accuracy"] == pytest.approx((3 + 2.5) / 8)
    assert result["ridge_accuracy"] == 0.5
    assert result["rm_minus_ridge"] == pytest.approx((0 + 1 - 0.25 + 0) / 4)
    assert result["rm_minus_ridge_low"] <= result["rm_minus_ridge"] <= result["rm_minus_ridge_high"]
    same = compare(four, [scores(1, -1, 2, -1)], [1.0, -1.0, 2.0, -0.5])
    assert (same["rm_minus_ridge_low"], same["rm_minus_ridge_high"]) == (0.0, 0.0)
