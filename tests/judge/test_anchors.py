"""A judge on the held-out responses: anchors, drift, relevance."""

import pytest

from align.core.rows import Answer, Judgement
from align.judge.anchors import anchor_scores, drift, relevance
from align.judge.request import Verdict
from align.report.iterations import bin_label, score_histogram, score_rows
from align.report.statistics import SCORE_EDGES


def judged(question: str, response: str, score: int) -> Judgement:
    return Judgement(question_id=question, category="c", prompt=f"prompt {question}", response=response, score=score)


ROWS = [judged("a", "good", 5), judged("a", "bad", 0), judged("b", "fair", 3), judged("b", "poor", 1)]
OFF_TOPIC = [judged("a", "fair", 0), judged("b", "good", 0)]


def verdicts(*scores: float | None) -> list[Verdict]:
    return [Verdict(score, None if score is not None else "digit mass under 0.5") for score in scores]


def test_anchors_are_numbered_within_their_question_and_keep_failures() -> None:
    rows = anchor_scores(ROWS, verdicts(4.0, None, 2.0, 1.0))
    assert [(row.question_id, row.number, row.score, row.predicted) for row in rows] == [
        ("a", 0, 5, 4.0),
        ("a", 1, 0, None),
        ("b", 0, 3, 2.0),
        ("b", 1, 1, 1.0),
    ]
    assert rows[1].failure == "digit mass under 0.5"


def test_a_judge_that_moves_all_scores_alike_has_shifted_and_keeps_the_order() -> None:
    before = anchor_scores(ROWS, verdicts(4.0, 0.5, 2.0, 1.0))
    after = anchor_scores(ROWS, verdicts(4.5, 1.0, 2.5, 1.5))
    assert drift(before, after) == {"shift": pytest.approx(0.5), "same_order": pytest.approx(1.0)}
    assert drift(before, before) == {"shift": 0.0, "same_order": pytest.approx(1.0)}


def test_failed_judgements_take_no_part_in_the_drift() -> None:
    before = anchor_scores(ROWS, verdicts(4.0, None, 2.0, 1.0))
    after = anchor_scores(ROWS, verdicts(5.0, 3.0, None, 2.0))
    assert drift(before, after)["shift"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("own", "foreign", "accuracy"),
    [
        ((4.0, 1.0, 3.0, 1.0), (0.5, 0.5), 1.0),
        ((4.0, 1.0, 3.0, 1.0), (0.5, 3.5), 0.5),
        ((4.0, 1.0, 3.0, 1.0), (4.0, 3.5), 0.25),  # a tie counts one half
    ],
)
def test_relevance_is_the_share_of_questions_whose_own_best_response_beats_a_good_one_to_another(
    own: tuple[float, ...], foreign: tuple[float, ...], accuracy: float
) -> None:
    assert relevance(ROWS, verdicts(*own), OFF_TOPIC, verdicts(*foreign))["accuracy"] == accuracy


def test_questions_with_a_failed_judgement_take_no_part_in_relevance() -> None:
    found = relevance(ROWS, verdicts(None, 1.0, 3.0, 1.0), OFF_TOPIC, verdicts(0.0, 0.0))
    assert (found["questions"], found["accuracy"]) == (1, 1.0)
    nothing = relevance(ROWS, verdicts(None, 1.0, None, 1.0), OFF_TOPIC, verdicts(0.0, 0.0))
    assert (nothing["questions"], nothing["accuracy"]) == (0, None)


def answer(score: float | None) -> Answer:
    return Answer(
        id="e",
        category="c",
        turn=1,
        prompt="p",
        response="r",
        finish_reason="stop",
        num_tokens=1,
        judge_score=score,
        judge_failure=None,
        reward=0.0,
        kl_to_base=0.0,
        kl_to_m0=0.0,
    )


def test_every_judged_answer_is_in_one_bin_of_the_table_and_of_the_plot() -> None:
    scores = [0.0, 0.49, 0.5, 2.25, 4.99, 5.0]
    answers = {"m0": [answer(score) for score in [*scores, None]], "m1": [answer(1.0)]}
    table = score_histogram(answers)
    assert [row["score"] for row in table] == [bin_label(low) for low in SCORE_EDGES[:-1]]
    assert sum(row["m0"] for row in table) == pytest.approx(1)
    assert {row["score"]: row["m1"] for row in table}["1.0-1.5"] == 1
    rows = score_rows(answers)
    assert len(rows) == 7
    for row in table:
        drawn = sum(r == {"model": "m0", "score": row["score"]} for r in rows)
        assert drawn / 6 == pytest.approx(row["m0"])
