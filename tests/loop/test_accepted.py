"""The IFT data of the next iteration: what is accepted, and how much of it."""

from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.core.rows import Instruction, ScoredResponse
from align.loop.accepted import good_rows, grow


def response(
    score: float | None,
    text: str = "An answer.",
    prompt_id: str = "p",
    sample: int = 0,
    finish_reason: Literal["stop", "length"] = "stop",
) -> ScoredResponse:
    return ScoredResponse(
        id=prompt_id,
        sample=sample,
        prompt=f"question of {prompt_id}",
        response=text,
        finish_reason=finish_reason,
        num_tokens=3,
        score=score,
        failure=None if score is not None else "empty response",
        digit_mass=None,
        entropy=None,
        judgements=[],
    )


def seed(number: int) -> Instruction:
    return Instruction(id=f"s{number}", category="c", prompt=f"seed prompt {number}", completion="text")


def generated(number: int, score: float, prompt: str | None = None) -> Instruction:
    return Instruction(
        id=f"g{number}",
        category="generated",
        prompt=prompt or f"new prompt {number}",
        completion="text",
        source="generated",
        iteration="m1",
        score=score,
        judge="m0",
    )


def test_the_best_response_that_reaches_the_score_is_accepted_with_its_lineage() -> None:
    rows = [response(3.0, "good", sample=0), response(4.5, "better", sample=1), response(2.0, "poor", sample=2)]
    (row,) = good_rows(rows, 3.0, "m2", "m1")
    assert (row.completion, row.prompt, row.source) == ("better", "question of p", "generated")
    assert (row.iteration, row.score, row.judge) == ("m2", 4.5, "m1")


@pytest.mark.parametrize(
    "row", [response(2.99), response(None), response(5.0, " "), response(5.0, finish_reason="length")]
)
def test_low_scored_failed_empty_and_cut_off_responses_are_never_accepted(row: ScoredResponse) -> None:
    assert good_rows([row], 3.0, "m1", "m0") == []


def test_a_score_of_exactly_the_threshold_is_accepted() -> None:
    assert len(good_rows([response(3.0)], 3.0, "m1", "m0")) == 1


def test_a_prompt_that_the_pool_has_is_a_duplicate_whatever_its_capitals() -> None:
    rows, outcomes = grow([seed(1), seed(2)], [generated(1, 5.0, "Seed prompt 1!"), generated(2, 4.0)], 0.5)
    assert [row.id for row in rows] == ["s1", "s2", "g2"]
    assert outcomes == {"duplicate": 1, "accepted": 1}


def test_of_two_new_rows_with_one_prompt_the_better_scored_comes_in() -> None:
    rows, outcomes = grow([seed(i) for i in range(5)], [generated(1, 3.0, "same"), generated(2, 4.0, "same")], 0.5)
    assert rows[-1].id == "g2"
    assert outcomes == {"accepted": 1, "duplicate": 1}


def test_rows_of_earlier_iterations_count_towards_the_share() -> None:
    pool = [seed(1), seed(2), generated(1, 5.0)]
    rows, outcomes = grow(pool, [generated(2, 4.0), generated(3, 4.5)], 0.5)
    assert [row.id for row in rows] == ["s1", "s2", "g1", "g3"]  # the better of the two; 2 of 4 are generated
    assert outcomes == {"accepted": 1, "over the share": 1}


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.integers(1, 20), st.lists(st.floats(0, 5), max_size=30), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
def test_the_generated_share_is_never_passed_and_every_row_has_one_outcome(
    seeds: int, scores: list[float], share: float
) -> None:
    found = [generated(i, score) for i, score in enumerate(scores)]
    rows, outcomes = grow([seed(i) for i in range(seeds)], found, share)
    assert sum(row.source == "generated" for row in rows) <= share * len(rows) + 1e-9
    assert outcomes.total() == len(found)
    assert len(rows) == seeds + outcomes["accepted"]
    kept = [row.score or 0.0 for row in rows if row.source == "generated"]
    left = [row.score or 0.0 for row in found if row not in rows]
    assert not kept or not left or min(kept) >= max(left)
