"""Cut-off rows: the beginning of a good answer scores 1."""

from hypothesis import given, settings
from hypothesis import strategies as st

from align.core.rows import Judgement
from align.data.cut_off import CUT_OFF, cut_off_rows

LONG = "Rinse the rice, use one and a half cups of water, and let it rest."
questions_of_rows = st.dictionaries(
    st.integers(0, 9).map("q{}".format),
    st.dictionaries(
        st.lists(st.sampled_from(["alpha", "beta.", "gamma,", "delta\n"]), min_size=1, max_size=20).map(" ".join),
        st.integers(0, 5),
        min_size=1,
        max_size=4,
    ),
    max_size=8,
)


def judged(question: str, response: str, score: int) -> Judgement:
    return Judgement(
        question_id=question, category="c", prompt=f"prompt {question}", response=response, score=score, rank=1
    )


@settings(derandomize=True, deadline=None)
@given(questions_of_rows, st.integers(0, 3), st.integers(0, 9))
def test_a_cut_off_row_is_a_proper_beginning_of_a_good_response_to_the_same_question(
    questions: dict[str, dict[str, int]], per_question: int, seed: int
) -> None:
    rows = [judged(key, text, score) for key, own in questions.items() for text, score in own.items()]
    made = cut_off_rows(rows, per_question, seed)
    assert made == cut_off_rows(rows, per_question, seed)
    for row in made:
        assert row.prompt == f"prompt {row.question_id}"
        assert (row.score, row.rank, row.justification) == (1, None, CUT_OFF)
        sources = [text.strip() for text, score in questions[row.question_id].items() if score >= 4]
        assert any(text.startswith(row.response) and len(row.response.split()) < len(text.split()) for text in sources)
        assert not row.response.endswith((".", ",", "\n"))
    wanted = {
        key: min(per_question, sum(score >= 4 and len(text.split()) >= 8 for text, score in own.items()))
        for key, own in questions.items()
    }
    assert len(made) == sum(wanted.values())


def test_the_best_response_is_cut_first_and_another_seed_cuts_elsewhere() -> None:
    rows = [judged("q", f"fair {LONG}", 4), judged("q", f"best {LONG}", 5), judged("q", f"bad {LONG}", 3)]
    made = [cut_off_rows(rows, 1, seed) for seed in range(8)]
    assert all(len(own) == 1 and own[0].response.startswith("best") for own in made)
    assert len({own[0].response for own in made}) > 1
