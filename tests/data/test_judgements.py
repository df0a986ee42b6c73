"""Judge training data from ranked replies: scores keep the human order, and no score is too frequent."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.core.errors import InputError
from align.core.rows import Judgement, read_rows, write_rows
from align.data.judgements import cap_scores, contradicts_ranking, judgements_of_tree, keep_consistent
from align.data.message_trees import MessageTree

derandomized = settings(derandomize=True, deadline=None)


def reply(text: str, rank: int | None, **changes: Any) -> dict[str, Any]:
    return {"message_id": f"id of {text}", "text": text, "role": "assistant", "lang": "en", "rank": rank, **changes}


def tree_row(replies: list[dict[str, Any]] | None, state: str = "ready_for_export", **changes: Any) -> dict[str, Any]:
    prompt = {"message_id": "t", "text": "Why?", "role": "prompter", "lang": "en", "deleted": False, "replies": replies}
    return {"message_tree_id": "t", "tree_state": state, "prompt": {**prompt, **changes}}


def tree(replies: list[dict[str, Any]] | None, state: str = "ready_for_export", **changes: Any) -> MessageTree:
    return MessageTree.model_validate(tree_row(replies, state, **changes))


def ranked(*ranks: int) -> list[dict[str, Any]]:
    return [reply(f"reply of rank {rank}", rank) for rank in ranks]


def judged(question: str, response: str, score: int, rank: int | None = None) -> Judgement:
    return Judgement(
        question_id=question, category="c", prompt=f"prompt {question}", response=response, score=score, rank=rank
    )


def of_tree(row: MessageTree, language: str | None = None) -> list[Judgement]:
    rows = judgements_of_tree(row, language=language)
    assert isinstance(rows, list), rows
    return rows


def test_a_trees_ranked_replies_are_judgements_best_first() -> None:
    rows = of_tree(tree([reply(" worse\n", 4), reply("best", 0), reply("middling", 2)], text=" Why?\n"), "en")
    same = {"question_id": "t", "category": "ranked", "prompt": "Why?"}
    assert rows == [
        Judgement(response="best", score=5, rank=0, **same),
        Judgement(response="middling", score=3, rank=2, **same),
        Judgement(response="worse", score=0, rank=4, **same),
    ]
    assert [row.justification for row in rows] == [None] * 3


@pytest.mark.parametrize(
    ("count", "scores"),
    [
        (2, [5, 0]),
        (3, [5, 3, 0]),  # 2.5 goes up
        (4, [5, 3, 2, 0]),
        (5, [5, 4, 3, 1, 0]),  # 3.75, 2.5, 1.25
        (6, [5, 4, 3, 2, 1, 0]),
        (9, [5, 4, 4, 3, 3, 2, 1, 1, 0]),
        (11, [5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0]),  # every other one ends in a half
    ],
)
def test_scores_are_spread_evenly_over_the_scale_by_hand(count: int, scores: list[int]) -> None:
    assert [row.score for row in of_tree(tree(ranked(*range(count))))] == scores


@derandomized
@given(st.sets(st.integers(0, 40), min_size=2, max_size=20), st.randoms(use_true_random=False))
def test_the_scores_of_any_tree_run_from_5_to_0_and_agree_with_its_ranks(ranks: set[int], rng: random.Random) -> None:
    replies = ranked(*ranks)
    rng.shuffle(replies)
    rows = of_tree(tree(replies))
    assert [row.rank for row in rows] == sorted(ranks)
    scores = [row.score for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert (scores[0], scores[-1]) == (5, 0)
    assert not contradicts_ranking(rows)


@pytest.mark.parametrize(
    "unusable",
    [
        pytest.param(reply("x", 1, deleted=True), id="deleted"),
        pytest.param(reply("x", None), id="no rank"),
        pytest.param({key: value for key, value in reply("x", 1).items() if key != "rank"}, id="rank left out"),
        pytest.param(reply(" \n", 1), id="blank"),
        pytest.param(reply("x", 1, role="prompter"), id="not an assistant's"),
    ],
)
def test_an_unusable_reply_is_left_out_and_the_others_share_the_scale(unusable: dict[str, Any]) -> None:
    rows = of_tree(tree([unusable, *ranked(0, 2, 3)]))
    assert [(row.rank, row.score) for row in rows] == [(0, 5), (2, 3), (3, 0)]
    assert judgements_of_tree(tree([unusable, *ranked(0)]), language=None) == "fewer than two ranked replies"


@pytest.mark.parametrize(
    ("unusable", "reason"),
    [
        (tree(ranked(0, 1), deleted=True), "deleted"),
        (tree(ranked(0, 1), state="halted_by_moderator"), "not ready for export"),
        (tree(ranked(0, 1), lang="de"), "another language"),
        (tree(ranked(0, 1), lang=None), "another language"),
        (tree(ranked(0, 1), text=" "), "blank prompt"),
        (tree(ranked(0)), "fewer than two ranked replies"),
        (tree(None), "fewer than two ranked replies"),
        (tree([*ranked(0), reply("same", 1), reply("same ", 2)]), "replies with equal text"),
        (tree([*ranked(0, 1), reply("another", 1)]), "tied ranks"),
    ],
)
def test_a_tree_that_gives_no_ranking_says_why(unusable: MessageTree, reason: str) -> None:
    assert judgements_of_tree(unusable, language="en") == reason


def test_any_language_will_do_where_none_is_asked_for() -> None:
    assert len(of_tree(tree(ranked(0, 1), lang="de"))) == 2
    assert len(of_tree(tree(ranked(0, 1), lang="de"), "de")) == 2


def test_a_left_out_reply_makes_no_tie_and_no_equal_text() -> None:
    rows = of_tree(tree([*ranked(0, 1), reply("x", 1, deleted=True), reply("reply of rank 0", None)]))
    assert [row.rank for row in rows] == [0, 1]


def write_trees(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_trees_are_read_as_rows_whatever_other_keys_they_have(tmp_path: Path) -> None:
    row = {**tree_row([*ranked(0), reply("x", 1, emojis={"+1": 3}, replies=[{"text": 7}])]), "origin": "web"}
    (read,) = read_rows(write_trees(tmp_path / "trees.jsonl", row), MessageTree, unique=["message_tree_id"])
    assert [row.response for row in of_tree(read)] == ["reply of rank 0", "x"]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"prompt": tree_row([])["prompt"]}, '"message_tree_id" is missing'),
        ({"message_tree_id": "t"}, '"prompt" is missing'),
        (tree_row([], role="assistant"), '"prompt.role" should be'),
        (tree_row([reply("x", 0) | {"rank": "1"}]), '"prompt.replies.0.rank" should be a valid integer'),
        (tree_row([reply("x", -1)]), '"prompt.replies.0.rank" should be greater than or equal to 0'),
        (tree_row([reply("x", 0, deleted="no")]), '"prompt.replies.0.deleted" should be a valid boolean'),
        (tree_row([{"role": "assistant", "rank": 0}]), '"prompt.replies.0.text" is missing'),
    ],
)
def test_a_key_that_is_used_must_be_right(tmp_path: Path, row: dict[str, Any], complaint: str) -> None:
    path = write_trees(tmp_path / "trees.jsonl", tree_row([]), row)
    with pytest.raises(InputError, match=rf"trees\.jsonl:2: {complaint}"):
        read_rows(path, MessageTree)


def test_the_judgements_of_trees_in_a_file_pass_the_rank_check_and_come_back_from_their_own(tmp_path: Path) -> None:
    written = [
        tree_row(ranked(*range(count))) | {"message_tree_id": f"t{count}", "created_date": "2023-02-05"}
        for count in range(2, 10)
    ]
    trees = read_rows(write_trees(tmp_path / "trees.jsonl", *written), MessageTree, unique=["message_tree_id"])
    rows = [row for found in trees for row in of_tree(found, "en")]
    assert Counter(row.question_id for row in rows) == {f"t{count}": count for count in range(2, 10)}
    assert keep_consistent(rows) == (rows, 0)
    write_rows(tmp_path / "eft.jsonl", rows)
    assert read_rows(tmp_path / "eft.jsonl", Judgement, unique=["question_id", "response"]) == rows


@derandomized
@given(st.lists(st.tuples(st.none() | st.integers(0, 4), st.integers(0, 5)), max_size=7))
def test_a_contradiction_is_a_pair_that_is_ranked_one_way_and_scored_the_other(
    outcomes: list[tuple[int | None, int]],
) -> None:
    rows = [judged("q", f"r{i}", score, rank) for i, (rank, score) in enumerate(outcomes)]
    assert contradicts_ranking(rows) == any(
        a_rank < b_rank and a_score < b_score
        for a_rank, a_score in outcomes
        for b_rank, b_score in outcomes
        if a_rank is not None and b_rank is not None
    )


@pytest.mark.parametrize(
    ("outcomes", "contradicts"),
    [
        ([(0, 5), (1, 3), (2, 3)], False),
        ([(2, 3), (1, 3), (0, 5)], False),
        ([(0, 3), (1, 5)], True),
        ([(0, 4), (1, 2), (2, 3)], True),
        ([(0, 4), (None, 5), (1, 4)], False),
        ([(1, 2), (1, 4)], False),
        ([(0, 3), (1, 2), (1, 4)], True),
        ([], False),
    ],
)
def test_contradictions_by_hand(outcomes: list[tuple[int | None, int]], contradicts: bool) -> None:
    assert contradicts_ranking([judged("q", f"r{i}", s, r) for i, (r, s) in enumerate(outcomes)]) == contradicts


def test_a_question_that_contradicts_its_ranking_is_dropped_whole_and_counted() -> None:
    a = [judged("a", "1", 5, 0), judged("a", "2", 4, 1)]
    b = [judged("b", "1", 3, 0), judged("b", "2", 4, 1), judged("b", "3", 0)]
    c = [judged("c", "1", 1), judged("c", "2", 4)]
    d = [judged("d", "1", 0, 0), judged("d", "2", 4, 1)]
    rows = [b[0], a[0], c[0], b[1], a[1], b[2], d[0], c[1], d[1]]
    assert keep_consistent(rows) == ([a[0], c[0], a[1], c[1]], 2)
    assert keep_consistent([]) == ([], 0)


score_lists = st.lists(st.integers(0, 5), min_size=1, max_size=60)


def with_scores(scores: list[int]) -> list[Judgement]:
    return [judged(f"q{i // 3}", f"r{i}", score) for i, score in enumerate(scores)]


@derandomized
@given(score_lists, st.floats(0.01, 1), st.integers(0, 9))
def test_no_score_has_more_than_its_share_of_what_is_left_and_none_is_lost(
    scores: list[int], max_share: float, seed: int
) -> None:
    rows = with_scores(scores)
    if 1 / len(set(scores)) > max_share:
        with pytest.raises(InputError, match=r"prepare_data\.max_score_share"):
            cap_scores(rows, max_share, seed)
        return
    kept, dropped = cap_scores(rows, max_share, seed)
    counts = Counter(row.score for row in kept)
    assert set(counts) == set(scores)
    assert max(counts.values()) / len(kept) <= max_share
    assert len(kept) + dropped == len(rows)
    left = iter(rows)
    assert all(row in left for row in kept), "kept rows stand in their old order"


@derandomized
@given(score_lists, st.floats(0.17, 1))
def test_no_higher_cap_would_do(scores: list[int], max_share: float) -> None:
    counts = Counter(scores)
    fitting = []
    for cap in range(1, max(counts.values()) + 1):
        capped = {score: min(count, cap) for score, count in counts.items()}
        if max(capped.values()) / sum(capped.values()) <= max_share:
            fitting.append(capped)
    if fitting:
        kept, _ = cap_scores(with_scores(scores), max_share, 17)
        assert Counter(row.score for row in kept) == max(fitting, key=lambda capped: sum(capped.values()))


@derandomized
@given(score_lists, st.integers(0, 9), st.randoms(use_true_random=False))
def test_which_rows_are_kept_follows_from_the_rows_and_not_from_their_places(
    scores: list[int], seed: int, rng: random.Random
) -> None:
    rows = with_scores([0, 1, 2, 3, *scores])
    shuffled = rng.sample(rows, len(rows))
    kept, dropped = cap_scores(rows, 0.26, seed)
    again, dropped_again = cap_scores(shuffled, 0.26, seed)
    assert dropped == dropped_again
    assert again == [row for row in shuffled if row in kept]


@derandomized
@given(st.integers(0, 9), st.integers(0, 50))
def test_one_more_row_moves_at_most_one_other(seed: int, number: int) -> None:
    rows = with_scores([5] * 40 + [3] * 20 + [0] * 20)
    kept, dropped = cap_scores(rows, 0.4, seed)
    more, _ = cap_scores([*rows, judged("new", f"r{number}", 5)], 0.4, seed)
    assert dropped > 0
    assert len([row for row in kept if row not in more]) <= 1


def test_the_cap_by_hand() -> None:
    kept, dropped = cap_scores(with_scores([5] * 10 + [3] * 2 + [0] * 4), 0.5, 0)
    assert Counter(row.score for row in kept) == {5: 6, 3: 2, 0: 4}
    assert dropped == 4


def test_another_seed_keeps_other_rows() -> None:
    rows = with_scores([5] * 30 + [0] * 5)
    assert cap_scores(rows, 0.5, 1) != cap_scores(rows, 0.5, 2)


@derandomized
@given(st.lists(st.integers(0, 5), max_size=30))
def test_a_share_of_1_changes_nothing(scores: list[int]) -> None:
    rows = with_scores(scores)
    assert cap_scores(rows, 1, 17) == (rows, 0)


@pytest.mark.parametrize(("different", "least"), [(1, 1.0), (2, 0.5), (3, 0.34), (5, 0.2), (6, 0.17)])
def test_a_share_that_too_few_scores_cannot_meet_is_an_error_that_names_one_they_can(
    different: int, least: float
) -> None:
    rows = with_scores([*range(different)] * 7)
    with pytest.raises(InputError, match=rf"^params\.yaml: prepare_data\.max_score_share: .* set at least {least},"):
        cap_scores(rows, 0.1, 17)
    assert cap_scores(rows, least, 17) == (rows, 0)
