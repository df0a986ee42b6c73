"""Off-topic rows: an answer to another question scores 0."""

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from align.core.rows import Judgement
from align.data.off_topic import OFF_TOPIC, off_topic_rows

derandomized = settings(derandomize=True, deadline=None)


def judged(question: str, response: str, score: int, rank: int | None = None) -> Judgement:
    return Judgement(
        question_id=question, category="c", prompt=f"prompt {question}", response=response, score=score, rank=rank
    )


# A few texts for many questions, so that responses and prompts are often equal.
questions_of_rows = st.dictionaries(
    st.integers(0, 9).map("q{}".format),
    st.tuples(
        st.sampled_from("ABCDEF"),
        st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 5), min_size=1, max_size=4),
    ),
    max_size=8,
)


def rows_of(questions: dict[str, tuple[str, dict[str, int]]]) -> list[Judgement]:
    return [
        Judgement(question_id=key, category=f"category {key}", prompt=prompt, response=response, score=score, rank=1)
        for key, (prompt, responses) in questions.items()
        for response, score in responses.items()
    ]


@derandomized
@given(questions_of_rows, st.integers(0, 3), st.integers(0, 9))
def test_an_off_topic_row_answers_a_question_with_the_best_response_of_another(
    questions: dict[str, tuple[str, dict[str, int]]], per_question: int, seed: int
) -> None:
    rows = rows_of(questions)
    made = off_topic_rows(rows, per_question, seed)
    for row in made:
        prompt, own = questions[row.question_id]
        assert row.response not in own
        assert (row.score, row.rank, row.justification) == (0, None, OFF_TOPIC)
        assert (row.prompt, row.category) == (prompt, f"category {row.question_id}")
        assert any(
            other != prompt and responses.get(row.response) == max(responses.values())
            for other, responses in questions.values()
        )
    keys = [(row.question_id, row.response) for row in rows + made]
    assert len(set(keys)) == len(keys)
    assert max(Counter(row.question_id for row in made).values(), default=0) <= per_question


@derandomized
@given(questions_of_rows, st.integers(1, 3), st.randoms(use_true_random=False))
def test_off_topic_rows_do_not_depend_on_the_order_of_the_rows(
    questions: dict[str, tuple[str, dict[str, int]]], per_question: int, rng: random.Random
) -> None:
    rows = rows_of(questions)
    made = off_topic_rows(rows, per_question, 17)
    shuffled = off_topic_rows(rng.sample(rows, len(rows)), per_question, 17)
    assert sorted(shuffled, key=str) == sorted(made, key=str)


@derandomized
@given(st.integers(2, 12), st.integers(1, 4), st.integers(0, 9))
def test_each_question_gets_its_rows_and_each_response_is_taken_as_often(
    count: int, per_question: int, seed: int
) -> None:
    rows = [judged(f"q{i}", f"r{i}", 5) for i in range(count)]
    made = off_topic_rows(rows, per_question, seed)
    each = min(per_question, count - 1)
    assert [row.question_id for row in made] == [f"q{i}" for i in range(count) for _ in range(each)]
    assert Counter(row.response for row in made) == {f"r{i}": each for i in range(count)}


@derandomized
@given(st.integers(0, 30), st.integers(0, 9))
def test_one_more_question_moves_at_most_one_off_topic_row(number: int, seed: int) -> None:
    rows = [judged(f"q{i}", f"r{i}", 5) for i in range(20)]
    before = off_topic_rows(rows, 1, seed)
    after = off_topic_rows([*rows, judged(f"new {number}", "new", 5)], 1, seed)
    assert len([row for row in before if row not in after]) == 1


@derandomized
@given(st.integers(0, 30))
def test_a_response_under_4_is_taken_only_where_no_better_one_is_left(seed: int) -> None:
    rows = [
        judged("a", "a5", 5),
        judged("b", "b3", 3),
        judged("c", "c1", 1),
        judged("c", "c4", 4),
        judged("d", "d0", 0),
    ]

    def taken(per_question: int) -> list[str]:
        made = off_topic_rows(rows, per_question, seed)
        return sorted(row.response for row in made if row.question_id == "b")

    assert taken(1) in (["a5"], ["c4"])
    assert taken(2) == ["a5", "c4"]
    assert taken(3) == taken(4) == ["a5", "c4", "d0"]


def test_one_prompt_under_two_names_is_not_off_topic() -> None:
    twins = [judged("a", "x", 5), judged("b", "y", 5).model_copy(update={"prompt": " Prompt A\n"})]
    assert off_topic_rows(twins, 1, 17) == []
    other = judged("c", "z", 5)
    made = off_topic_rows([*twins, other], 2, 17)
    assert [(row.question_id, row.response) for row in made[:2]] == [("a", "z"), ("b", "z")]
    assert {row.response for row in made[2:]} == {"x", "y"}


def test_another_seed_takes_other_questions() -> None:
    rows = [judged(f"q{i}", f"r{i}", 5) for i in range(20)]
    assert off_topic_rows(rows, 1, 1) != off_topic_rows(rows, 1, 2)
