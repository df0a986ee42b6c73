"""Responses to other questions: a judge must score them 0, however good they are."""

from collections.abc import Iterator, Sequence

from align.core.rows import Judgement
from align.core.split import digest

GOOD_SCORE = 4  # the lowest score that the rubric calls helpful
OFF_TOPIC = "Answers another question."


def off_topic_rows(rows: Sequence[Judgement], per_question: int, seed: int) -> list[Judgement]:
    """Return new rows with score 0 for each question: the best responses to other questions, to teach relevance.

    The other questions have another prompt; those whose best score is at least 4 go first. None of the question's own
    responses is used. The others are the questions that follow in the order of the hashes of (seed, question), so each
    is used about equally often and the order of the file does not matter. A question gets fewer rows if there are too
    few others.

    Call it on one side of a split only; otherwise held-out text leaks into training.
    """
    questions = by_question(rows)
    best = {key: min(own, key=lambda row: (-row.score, digest(seed, row.response))) for key, own in questions.items()}
    order = sorted(best.values(), key=lambda row: digest(seed, row.question_id))
    places = {row.question_id: place for place, row in enumerate(order)}
    made: list[Judgement] = []
    for key, own in questions.items():
        others = order[places[key] + 1 :] + order[: places[key]]
        taken = {row.response.strip() for row in own}
        wanted = len(taken) + per_question
        for other in _good_first(others):
            if len(taken) == wanted:
                break
            response = other.response.strip()
            if response not in taken and _prompt_key(other) != _prompt_key(best[key]):
                taken.add(response)
                new = {"response": other.response, "score": 0, "justification": OFF_TOPIC, "rank": None}
                made.append(best[key].model_copy(update=new))
    return made


def _good_first(rows: Sequence[Judgement]) -> Iterator[Judgement]:
    yield from (row for row in rows if row.score >= GOOD_SCORE)  # lazy: only a few of thousands are read
    yield from (row for row in rows if row.score < GOOD_SCORE)


def _prompt_key(row: Judgement) -> str:
    return row.prompt.strip().lower()


def by_question(rows: Sequence[Judgement]) -> dict[str, list[Judgement]]:
    """Return the rows of each question, in the order of the file."""
    questions: dict[str, list[Judgement]] = {}
    for row in rows:
        questions.setdefault(row.question_id, []).append(row)
    return questions
