import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.core.rows import FinishReason, ScoredResponse
from align.loop.pairs import best_and_worst, build_pairs, margin_of, pairs_alike

MIN_MARGIN = 0.5
samples = st.tuples(
    st.sampled_from([None, 0.0, 1.0, 1.25, 1.5, 3.0, 5.0]), st.sampled_from(["", " \n", "a", "b", "c", "a "])
)
prompts = st.dictionaries(st.sampled_from(["p1", "p2", "p3", "p4"]), st.lists(samples, min_size=1, max_size=6))
Prompts = dict[str, list[tuple[float | None, str]]]


def scored(
    score: float | None,
    response: str,
    sample: int = 0,
    prompt_id: str = "p",
    num_tokens: int = 1,
    finish_reason: FinishReason = "stop",
) -> ScoredResponse:
    return ScoredResponse(
        id=prompt_id,
        sample=sample,
        prompt=f"question of {prompt_id}",
        response=response,
        finish_reason=finish_reason,
        num_tokens=num_tokens,
        score=score,
        failure=None if score is not None else "digit mass under 0.5",
        digit_mass=None,
        entropy=None,
        judgements=[],
    )


def rows_of(prompts: Prompts) -> list[ScoredResponse]:
    return [
        scored(score, response, sample, prompt_id)
        for prompt_id, members in prompts.items()
        for sample, (score, response) in enumerate(members)
    ]


@settings(derandomize=True, deadline=None, max_examples=200)
@given(prompts)
def test_every_prompt_makes_a_pair_or_is_counted_as_dropped(prompts: Prompts) -> None:
    pairs, dropped = build_pairs(rows_of(prompts), MIN_MARGIN)
    assert len(pairs) + dropped.total() == len(prompts)
    assert [pair.id for pair in pairs] == [
        prompt_id for prompt_id in prompts if prompt_id in {pair.id for pair in pairs}
    ]


@settings(derandomize=True, deadline=None, max_examples=200)
@given(prompts)
def test_a_pair_is_a_best_and_a_worst_response_of_its_prompt(prompts: Prompts) -> None:
    for pair in build_pairs(rows_of(prompts), MIN_MARGIN)[0]:
        valid = [(score, text) for score, text in prompts[pair.id] if score is not None and text.strip()]
        scores = [score for score, _ in valid]
        assert pair.margin == max(scores) - min(scores) >= MIN_MARGIN
        assert (max(scores), pair.chosen) in valid
        assert (min(scores), pair.rejected) in valid
        assert pair.chosen.strip() != pair.rejected.strip()
        assert [message.model_dump() for message in pair.messages] == [
            {"role": "user", "content": f"question of {pair.id}"}
        ]


@settings(derandomize=True, deadline=None, max_examples=100)
@given(prompts, st.integers(0, 2**16))
def test_the_order_of_a_prompts_rows_changes_nothing(prompts: Prompts, seed: int) -> None:
    rows = rows_of(prompts)
    groups = [[row for row in rows if row.id == prompt_id] for prompt_id in prompts]
    generator = random.Random(seed)
    shuffled = [row for group in groups for row in generator.sample(group, len(group))]
    assert build_pairs(shuffled, MIN_MARGIN) == build_pairs(rows, MIN_MARGIN)


def test_best_and_worst_are_chosen_and_rejected() -> None:
    rows = [scored(2.0, "middle", 0), scored(4.5, "best", 1), scored(1.0, "worst", 2)]
    (pair,), dropped = build_pairs(rows, MIN_MARGIN)
    assert (pair.chosen, pair.rejected, pair.margin) == ("best", "worst", 3.5)
    assert not dropped


def test_failed_judgements_and_empty_texts_are_never_in_a_pair() -> None:
    rows = [
        scored(None, "failed", 0),
        scored(5.0, " \n", 1),
        scored(0.0, "", 2),
        scored(3.0, "a", 3),
        scored(2.0, "b", 4),
    ]
    (pair,), _ = build_pairs(rows, MIN_MARGIN)
    assert (pair.chosen, pair.rejected) == ("a", "b")


def test_a_score_of_zero_is_a_judgement() -> None:
    (pair,), _ = build_pairs([scored(0.0, "zero", 0), scored(1.0, "one", 1)], MIN_MARGIN)
    assert (pair.chosen, pair.rejected) == ("one", "zero")


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([scored(5.0, "a")], "fewer than two judged responses"),
        ([scored(5.0, "a", 0), scored(None, "b", 1)], "fewer than two judged responses"),
        ([scored(5.0, "a", 0), scored(1.0, " ", 1)], "fewer than two judged responses"),
        ([scored(5.0, "same", 0), scored(1.0, " same\n", 1)], "identical responses"),
        ([scored(3.0, "a", 0), scored(3.0, "b", 1)], "margin too small"),
        ([scored(3.0, "a", 0), scored(2.75, "b", 1)], "margin too small"),
    ],
)
def test_a_prompt_without_a_pair_is_counted_by_reason(rows: list[ScoredResponse], reason: str) -> None:
    assert build_pairs(rows, MIN_MARGIN) == ([], {reason: 1})


def test_a_tie_is_no_preference_even_where_any_margin_will_do() -> None:
    assert best_and_worst([scored(3.0, "a", 0), scored(3.0, "b", 1)], 0.0) == "margin too small"


def test_a_margin_of_exactly_the_minimum_is_enough() -> None:
    (pair,), _ = build_pairs([scored(3.0, "a", 0), scored(2.5, "b", 1)], MIN_MARGIN)
    assert pair.margin == 0.5


def test_of_two_best_responses_the_one_sampled_first_is_chosen() -> None:
    rows = [scored(1.0, "bad", 2), scored(4.0, "second", 1), scored(4.0, "first", 0)]
    (pair,), _ = build_pairs(rows, MIN_MARGIN)
    assert pair.chosen == "first"


def test_rows_of_one_prompt_need_not_stand_together() -> None:
    rows = [scored(3.0, "a", 0, "p1"), scored(3.0, "b", 0, "p2"), scored(1.0, "c", 1, "p1"), scored(5.0, "d", 1, "p2")]
    pairs, _ = build_pairs(rows, MIN_MARGIN)
    assert [(pair.id, pair.chosen, pair.rejected) for pair in pairs] == [("p1", "a", "c"), ("p2", "d", "b")]


lengths = st.lists(st.tuples(st.sampled_from([0.0, 1.0, 2.0, 2.5, 3.0]), st.integers(1, 5)), min_size=2, max_size=6)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(lengths, st.sampled_from([0.25, 0.5, 1.0, 5.0]))
def test_length_control_chooses_a_shortest_of_those_within_rho_of_the_best(
    members: list[tuple[float, int]], rho: float
) -> None:
    rows = [scored(score, f"text {i}", i, num_tokens=tokens) for i, (score, tokens) in enumerate(members)]
    found = best_and_worst(rows, 0.0, rho)
    if isinstance(found, str):
        return
    [(chosen, rejected)] = found
    near = [tokens for score, tokens in members if score >= max(score for score, _ in members) - rho]
    assert chosen.num_tokens == min(near)
    assert chosen.score is not None
    assert chosen.score >= max(score for score, _ in members) - rho
    assert rejected.score == min(score for score, _ in members) < chosen.score


def test_without_length_control_the_longest_may_be_chosen() -> None:
    rows = [scored(3.0, "long", 0, num_tokens=9), scored(2.9, "short", 1, num_tokens=2), scored(1.0, "bad", 2)]
    for rho, chosen in ((0.0, "long"), (0.2, "short")):
        (pair,), _ = build_pairs(rows, MIN_MARGIN, rho)
        assert (pair.chosen, pair.rejected) == (chosen, "bad")


def test_the_margin_is_that_of_the_pair_and_not_of_the_best_response() -> None:
    rows = [scored(3.0, "long", 0, num_tokens=9), scored(2.5, "short", 1, num_tokens=2), scored(1.0, "bad", 2)]
    (pair,), _ = build_pairs(rows, MIN_MARGIN, 1.0)
    assert pair.margin == 1.5


def test_length_control_that_would_choose_the_rejected_makes_no_pair() -> None:
    rows = [scored(3.0, "long", 0, num_tokens=9), scored(2.0, "short", 1, num_tokens=2)]
    assert best_and_worst(rows, 0.0, 1.0) == "identical responses"


@pytest.mark.parametrize("length_rho", [0.0, 5.0])
def test_a_reply_that_was_cut_off_is_rejected_but_never_chosen(length_rho: float) -> None:
    cut_off = scored(4.5, "a fluent reply that", 0, finish_reason="length")
    rows = [cut_off, scored(3.0, "it ends.", 1), scored(1.0, "so does this", 2, finish_reason="length")]
    (pair,), _ = build_pairs(rows, MIN_MARGIN, length_rho, chosen_must_end=True)
    assert (pair.chosen, pair.rejected, pair.rejected_finish_reason) == ("it ends.", "so does this", "length")
    (pair,), _ = build_pairs(rows, MIN_MARGIN)
    assert (pair.chosen, pair.chosen_finish_reason) == ("a fluent reply that", "length")


def test_a_prompt_whose_replies_were_all_cut_off_is_counted() -> None:
    rows = [scored(score, f"reply {score}", i, finish_reason="length") for i, score in enumerate((4.0, 1.0))]
    pairs, dropped = build_pairs(rows, MIN_MARGIN, chosen_must_end=True)
    assert not pairs
    assert dropped == {"no response ends by itself": 1}


replies = st.lists(
    st.tuples(st.sampled_from([0.0, 1.0, 2.0, 2.5, 3.0]), st.integers(1, 12), st.sampled_from(["stop", "length"])),
    min_size=2,
    max_size=6,
)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(replies, st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_replies_of_a_pair_that_must_be_alike_end_alike_are_of_like_length_and_are_in_no_other_pair(
    members: list[tuple[float, int, FinishReason]], gap: float
) -> None:
    rows = [
        scored(score, f"text {i}", i, num_tokens=tokens, finish_reason=reason)
        for i, (score, tokens, reason) in enumerate(members)
    ]
    alike = [
        (best, worst)
        for best in rows
        for worst in rows
        if best.finish_reason == worst.finish_reason
        and margin_of(best, worst) >= MIN_MARGIN
        and max(best.num_tokens, worst.num_tokens) * (1 - gap) <= min(best.num_tokens, worst.num_tokens)
    ]
    found = pairs_alike(rows, MIN_MARGIN, gap)
    if isinstance(found, str):
        assert not alike
        return
    assert all(pair in alike for pair in found)
    assert len({sample.sample for pair in found for sample in pair}) == 2 * len(found) <= 4
    assert margin_of(*found[0]) == max(margin_of(*pair) for pair in alike)
    assert [margin_of(*pair) for pair in found] == sorted((margin_of(*pair) for pair in found), reverse=True)


def test_the_better_reply_of_like_length_is_chosen_and_not_the_best_of_all() -> None:
    rows = [
        scored(4.0, "the longest", 0, num_tokens=60),
        scored(3.0, "long and good", 1, num_tokens=20),
        scored(1.0, "long and bad", 2, num_tokens=18),
        scored(2.0, "short and good", 3, num_tokens=5),
        scored(0.5, "short and bad", 4, num_tokens=4),
    ]
    pairs, dropped = build_pairs(rows, MIN_MARGIN, max_length_gap=0.3)
    assert [(pair.id, pair.chosen, pair.rejected) for pair in pairs] == [
        ("p", "long and good", "long and bad"),
        ("p-2", "short and good", "short and bad"),
    ]
    assert not dropped


def test_a_cut_off_reply_is_in_no_pair_of_like_endings_where_the_chosen_must_end() -> None:
    rows = [scored(score, f"reply {score}", i, finish_reason="length") for i, score in enumerate((4.0, 1.0))]
    rows.append(scored(2.0, "it ends.", 2))
    (pair,), _ = build_pairs(rows, MIN_MARGIN, max_length_gap=0.3)
    assert (pair.chosen_finish_reason, pair.rejected_finish_reason) == ("length", "length")
    pairs, dropped = build_pairs(rows, MIN_MARGIN, chosen_must_end=True, max_length_gap=0.3)
    assert (pairs, dict(dropped)) == ([], {"no two responses of like length and ending": 1})
