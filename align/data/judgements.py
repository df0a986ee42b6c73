"""Judge training data (EFT) as in arXiv 2401.10020, section 3.1: from ranked human data, filtered and balanced.

Which rows are taken follows from hashes of the seed and the row's own texts, never from its place in the file.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import ceil

from align.core.errors import InputError
from align.core.rows import Judgement
from align.data.message_trees import MessageTree, ranked_replies

BEST_SCORE = 5
GOOD_SCORE = 4  # from here on the rubric calls a response helpful
OFF_TOPIC = "Answers another question."


def judgements_of_tree(tree: MessageTree, *, language: str | None) -> list[Judgement] | str:
    """Return the ranked replies to a tree's prompt as judgements, best first, or the reason why it gives none.

    Replies that are deleted, blank, without a rank or not an assistant's are left out. The scores are the ranks of the
    others spread evenly from 5 to 0, halves rounded up: a ranking tells an order and not a grade, so the best of some
    bad replies gets a 5 all the same. The ranking part of the judge's loss takes the order alone.

    Replies of one rank or one text make the whole tree unusable. Which of them is better is unknown, and equal scores
    would say that neither is, while to leave one out is to choose.

    Args:
        tree: the tree.
        language: the code that the prompt's language must have, or None for any.
    """
    ranked = ranked_replies(tree, language=language)
    if isinstance(ranked, str):
        return ranked
    if len(ranked) < 2:
        return "fewer than two ranked replies"
    if len({text for _, text in ranked}) < len(ranked):
        return "replies with equal text"
    if len({rank for rank, _ in ranked}) < len(ranked):
        return "tied ranks"
    return [
        Judgement(
            question_id=tree.message_tree_id,
            category="ranked",
            prompt=tree.prompt.text.strip(),
            response=text,
            score=_score_of_position(position, len(ranked)),
            rank=rank,
        )
        for position, (rank, text) in enumerate(ranked)
    ]


def _score_of_position(position: int, count: int) -> int:
    steps = count - 1
    return (2 * BEST_SCORE * (steps - position) + steps) // (2 * steps)  # in whole numbers, where a half is exact


def contradicts_ranking(rows: Sequence[Judgement]) -> bool:
    """Say whether some row of a question is ranked better than another and scored lower.

    Equal scores contradict no ranking: the scale has six values. Rows without a rank take no part.
    """
    ranked = sorted((row.rank, -row.score) for row in rows if row.rank is not None)
    # Rows of one rank stand by falling score, so only a step to a worse rank can go up.
    return any(better > worse for (_, better), (_, worse) in pairwise(ranked))


def keep_consistent(rows: Sequence[Judgement]) -> tuple[list[Judgement], int]:
    """Return the rows, in order, of the questions whose scores agree with the ranking, and how many do not."""
    wrong = {question for question, own in _by_question(rows).items() if contradicts_ranking(own)}
    return [row for row in rows if row.question_id not in wrong], len(wrong)


def first_questions(rows: Sequence[Judgement], limit: int) -> tuple[list[Judgement], int]:
    """Return the rows of the first questions, whole, that are `limit` rows at most, and how many questions are not.

    Raises:
        InputError: the first question alone has more rows than that.
    """
    taken, total = set(), 0
    questions = _by_question(rows)
    for question, own in questions.items():
        total += len(own)
        if total > limit:
            break
        taken.add(question)
    if rows and not taken:
        raise InputError(
            f"params.yaml: prepare_data.max_judgements: {limit} is less than the {total} rows of the first question; "
            "raise it"
        )
    return [row for row in rows if row.question_id in taken], len(questions) - len(taken)


def cap_scores(rows: Sequence[Judgement], max_share: float, seed: int) -> tuple[list[Judgement], int]:
    """Drop as few rows as it takes for no score to have more than `max_share` of the rows that are left.

    Which rows of a score go follows from the hash of (seed, question, response): rows added later move few others.

    Returns:
        The rows that are left, in order, with every score that was there; and how many were dropped.

    Raises:
        InputError: there are too few different scores for any share to be that small.
    """
    if not rows:
        return [], 0
    counts = Counter(row.score for row in rows)
    # The share of the most frequent score grows with the cap, hence the last cap that fits is the largest.
    cap = 0
    while cap < max(counts.values()) and _share_under_cap(counts, cap + 1) <= max_share:
        cap += 1
    if not cap:
        raise InputError(
            f"params.yaml: prepare_data.max_score_share: {max_share} cannot be met by {len(counts)} different "
            f"score{'s' if len(counts) > 1 else ''}; set at least {ceil(100 / len(counts)) / 100}, "
            "or add judgements with other scores"
        )
    kept: set[int] = set()
    for score in counts:
        places = [place for place, row in enumerate(rows) if row.score == score]
        places.sort(key=lambda place: _digest(seed, rows[place].question_id, rows[place].response))
        kept.update(places[:cap])
    return [row for place, row in enumerate(rows) if place in kept], len(rows) - len(kept)


def _share_under_cap(counts: Counter[int], cap: int) -> float:
    return cap / sum(min(count, cap) for count in counts.values())


def off_topic_rows(rows: Sequence[Judgement], per_question: int, seed: int) -> list[Judgement]:
    """Return new rows with score 0 for each question: the best responses of others, for it to tell what is relevant.

    The others have another prompt, and a best score of at least 4 as long as there are any; none of their responses is
    one of the question's own. They are those that follow the question in the order of the hashes of (seed, question):
    each is taken about equally often, and no row's place in the file matters. A question gets fewer rows where there
    are not enough others.

    Give it one side of a split: what it takes from the held-out side would be trained on.
    """
    questions = _by_question(rows)
    best = {key: min(own, key=lambda row: (-row.score, _digest(seed, row.response))) for key, own in questions.items()}
    order = sorted(best.values(), key=lambda row: _digest(seed, row.question_id))
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
    yield from (row for row in rows if row.score >= GOOD_SCORE)  # lazily: a few of thousands are looked at
    yield from (row for row in rows if row.score < GOOD_SCORE)


def _prompt_key(row: Judgement) -> str:
    return row.prompt.strip().lower()


def _by_question(rows: Sequence[Judgement]) -> dict[str, list[Judgement]]:
    questions: dict[str, list[Judgement]] = {}
    for row in rows:
        questions.setdefault(row.question_id, []).append(row)
    return questions


def _digest(seed: int, *texts: str) -> bytes:
    return hashlib.sha256("\x1f".join((str(seed), *texts)).encode()).digest()
