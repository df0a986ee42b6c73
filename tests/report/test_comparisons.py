"""Models compared on their evaluated rows."""

import random
from pathlib import Path
from typing import Any

import pytest

from align.core.errors import InputError
from align.core.rows import Answer, CheckedAnswer, write_rows
from align.report.comparisons import (
    MEASURES,
    Evaluated,
    compare,
    comparison_columns,
    half,
    in_development_half,
    is_loop,
    own_columns,
    read_evaluated,
)
from align.report.paired import BETTER, CANNOT_TELL, WORSE
from tests.answers import answer, checked_answer


def model(scores: list[float | None], **changes: Any) -> Evaluated:
    """Return a model with an answer of one turn for each judge score."""
    return Evaluated([answer(f"e{i}", judge_score=score, **changes) for i, score in enumerate(scores)], [])


def checked(passed: str) -> Evaluated:
    """Return a model with a checked answer for each `+` (both checks passed) or `-` (one of them failed)."""
    return Evaluated([], [checked_answer(f"c{i}", [True, mark == "+"]) for i, mark in enumerate(passed)])


def test_the_judges_difference_is_the_mean_over_prompts_that_both_have_a_score_for() -> None:
    found = compare(model([3.0, None, 1.0, 2.0]), model([1.0, 2.0, None, 1.0]), "judge")
    assert (found.mean, found.pairs) == (1.5, 2)


def test_the_turns_of_a_conversation_are_drawn_together() -> None:
    def of_turns(turns: int, scores: list[float]) -> Evaluated:
        return Evaluated(
            [
                answer(f"e{i}", judge_score=score, turn=turn)
                for i, score in enumerate(scores)
                for turn in range(1, turns + 1)
            ],
            [],
        )

    scores = [1.0, 2.0, 3.0, 2.0, 1.0, 3.0, 2.0, 2.0]
    once, twice = (compare(of_turns(turns, scores), of_turns(turns, [2.0] * 8), "judge") for turns in (1, 2))
    assert (twice.pairs, twice.clusters) == (16, 8)
    assert (twice.low, twice.high, twice.detectable) == pytest.approx((once.low, once.high, once.detectable))


def test_the_rewards_difference_leaves_out_every_prompt_with_a_cut_off_answer() -> None:
    ours = Evaluated([answer(f"e{i}", reward=1.0) for i in range(4)], [])
    theirs = Evaluated([answer(f"e{i}", reward=0.5) for i in range(4)], [])
    cut = answer("e0", reward=99.0, finish_reason="length")
    found = compare(Evaluated([cut, *ours.answers[1:]], []), theirs, "reward")
    assert (found.mean, found.pairs) == (0.5, 3)
    found = compare(ours, Evaluated([cut, *theirs.answers[1:]], []), "reward")
    assert (found.mean, found.pairs) == (0.5, 3)


def test_a_checked_prompt_is_passed_if_all_of_its_strict_checks_are() -> None:
    found = compare(checked("++++++++--"), checked("++------+-"), "checks")
    # Six won, one lost; 2 * (1 + 7) / 2^7.
    assert found.mean == pytest.approx(0.5)
    assert found.p == pytest.approx(0.125)
    assert found.verdict == CANNOT_TELL
    assert found.low is not None
    assert found.low > 0
    assert own_columns(checked("++-"))["checks_passed"] == pytest.approx(2 / 3)
    assert compare(checked("+" * 9 + "-"), checked("-" * 10), "checks").verdict == BETTER
    assert compare(checked("-" * 10), checked("+" * 9 + "-"), "checks").verdict == WORSE


def test_without_checked_prompts_nothing_is_said_about_them() -> None:
    found = compare(checked(""), checked(""), "checks")
    assert (found.mean, found.low, found.p, found.verdict) == (None, None, None, CANNOT_TELL)


def two_models(seed: int) -> tuple[list[Answer], list[Answer], list[CheckedAnswer], list[CheckedAnswer]]:
    generator = random.Random(seed)

    def answers() -> list[Answer]:
        return [
            answer(f"e{i}", turn=turn, judge_score=generator.uniform(0, 5), reward=generator.gauss(0, 1))
            for i in range(12)
            for turn in (1, 2)
        ]

    def checks() -> list[CheckedAnswer]:
        return [checked_answer(f"c{i}", [generator.random() < 0.5]) for i in range(20)]

    return answers(), answers(), checks(), checks()


def test_the_order_of_rows_changes_nothing() -> None:
    ours, theirs, our_checks, their_checks = two_models(1)
    order = random.Random(2).sample(range(24), 24)
    check_order = random.Random(3).sample(range(20), 20)
    plain = {"a": Evaluated(ours, our_checks), "m0": Evaluated(theirs, their_checks)}
    mixed = {
        "a": Evaluated([ours[i] for i in order], [our_checks[i] for i in check_order]),
        "m0": Evaluated([theirs[i] for i in order], [their_checks[i] for i in check_order]),
    }
    assert comparison_columns(mixed, "a", "m0") == comparison_columns(plain, "a", "m0")


def test_a_model_is_equal_to_itself_by_every_measure() -> None:
    ours, _, our_checks, _ = two_models(4)
    columns = comparison_columns({"a": Evaluated(ours, our_checks)}, "a", "a")
    for measure in MEASURES:
        key = f"{measure}_difference_vs_a"
        assert [columns[f"{key}{end}"] for end in ("", "_low", "_high", "_detectable")] == [0.0] * 4
        assert columns[f"{key}_verdict"] == CANNOT_TELL
    assert (columns["win_rate_vs_a"], columns["checks_difference_vs_a_p"]) == (0.5, 1.0)
    assert columns["length_controlled_win_rate_vs_a"] is None


def test_each_half_has_whole_conversations_and_a_prompts_half_depends_on_its_id_alone() -> None:
    ours, _, our_checks, _ = two_models(5)
    development, other = (half(Evaluated(ours, our_checks), side) for side in (True, False))
    ids = [{row.id for row in side.answers} for side in (development, other)]
    assert ids[0]
    assert ids[1]
    assert not ids[0] & ids[1]
    assert len(development.answers) + len(other.answers) == len(ours)
    assert len(development.checked) + len(other.checked) == len(our_checks)
    fewer = half(Evaluated(ours[:10], []), True).answers
    assert fewer == [row for row in development.answers if row in ours[:10]]
    assert 400 < sum(in_development_half(f"e{i}") for i in range(1000)) < 600


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ("", False),
        ("Yes.", False),
        ("Yes, yes.", False),
        ("no no no no", True),  # three pairs, one of them distinct
        ("The cat sat on the mat. The dog lay on the rug.", False),
        # Four words, three times: their pairs are still distinct enough.
        ("I see the sea at dawn, I see the sea at noon, I see the sea at night, and then home to bed we go.", True),
        ("I see the sea at dawn, I see the sea at noon, and then home to bed we go.", False),
        ("I SEE the sea! I see the sea? I see: the sea", True),
        ("we sing and we sing and we sing", True),
        ("a b a b a", False),  # exactly half of the pairs are distinct
        ("a b a b a b", True),
    ],
)
def test_a_loop_is_four_words_three_times_or_mostly_repeated_pairs(text: str, loops: bool) -> None:
    assert is_loop(text) == loops


def test_the_shares_of_a_model_are_over_its_own_answers() -> None:
    rows = [answer("e1", response="no no no no"), answer("e2", response="Yes."), answer("e3"), answer("e4")]
    loose = [checked_answer("c1", [False], [True]), checked_answer("c2", [True])]
    assert own_columns(Evaluated(rows, loose)) == {
        "loop_share": 0.25,
        "checks_passed": 0.5,
        "checks_passed_loose": 1.0,
    }


def test_the_files_of_models_are_read_with_or_without_checked_answers(tmp_path: Path) -> None:
    for name in ("m0", "m1"):
        write_rows(tmp_path / f"{name}.jsonl", [answer("e1")])
    assert read_evaluated(tmp_path, ["m0", "m1"])["m1"] == Evaluated([answer("e1")], [])
    write_rows(tmp_path / "m0.checks.jsonl", [checked_answer("c1", [True])])
    with pytest.raises(InputError, match=r"m1\.checks\.jsonl: no such file"):
        read_evaluated(tmp_path, ["m0", "m1"])
    write_rows(tmp_path / "m1.checks.jsonl", [checked_answer("c1", [False])])
    assert read_evaluated(tmp_path, ["m0", "m1"])["m1"].checked == [checked_answer("c1", [False])]
