"""Judge training data (EFT) as in arXiv 2401.10020, section 3.1: from ranked human data, filtered and balanced.

Which rows are taken follows from hashes of the seed and the row's own texts, never from its place in the file.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from math import ceil

from align.core.errors import InputError
from align.core.rows import Judgement
from align.data.message_trees import MessageTree, ranked_replies
from align.data.off_topic import by_question, digest

BEST_SCORE = 5


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
    wrong = {question for question, own in by_question(rows).items() if contradicts_ranking(own)}
    return [row for row in rows if row.question_id not in wrong], len(wrong)


def first_questions(rows: Sequence[Judgement], limit: int) -> tuple[list[Judgement], int]:
    """Return the rows of the first questions, whole, that are `limit` rows at most, and how many questions are not.

    Raises:
        InputError: the first question alone has more rows than that.
    """
    taken, total = set(), 0
    questions = by_question(rows)
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
        places.sort(key=lambda place: digest(seed, rows[place].question_id, rows[place].response))
        kept.update(places[:cap])
    return [row for place, row in enumerate(rows) if place in kept], len(rows) - len(kept)


def _share_under_cap(counts: Counter[int], cap: int) -> float:
    return cap / sum(min(count, cap) for count in counts.values())
