"""Judge training data (EFT) from ranked human data, filtered and balanced (arXiv 2401.10020, section 3.1).

Rows are drawn by hashes of the seed and their texts, not by their place in the file.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from math import ceil

from align.core.errors import InputError
from align.core.rows import Judgement
from align.core.split import digest
from align.data.message_trees import MessageTree, ranked_replies
from align.data.off_topic import by_question

BEST_SCORE = 5


def judgements_of_tree(tree: MessageTree, *, language: str | None) -> list[Judgement] | str:
    """Return a tree's `ranked_replies` as judgements, best first, or the reason why it is unusable.

    The scores are the ranks spread evenly from 5 to 0, halves rounded up. A ranking is an order and not a grade, so the
    best of some bad replies also gets a 5; the ranking part of the judge's loss uses only the order.

    Replies with equal rank or text make the tree unusable: which is better is unknown, equal scores would say that
    neither is, and leaving one out would choose.
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
    steps = len(ranked) - 1
    return [
        Judgement(
            question_id=tree.message_tree_id,
            category="ranked",
            prompt=tree.prompt.text.strip(),
            response=text,
            score=(2 * BEST_SCORE * (steps - position) + steps) // (2 * steps),  # in integers, where a half is exact
            rank=rank,
        )
        for position, (rank, text) in enumerate(ranked)
    ]


def contradicts_ranking(rows: Sequence[Judgement]) -> bool:
    """Return whether any row of a question is ranked better than another but scored lower.

    Equal scores contradict no ranking: the scale has six values. Rows without a rank are ignored.
    """
    ranked = sorted((row.rank, -row.score) for row in rows if row.rank is not None)
    # Scores fall within a rank, so only a step to a worse rank can raise them.
    return any(better > worse for (_, better), (_, worse) in pairwise(ranked))


def keep_consistent(rows: Sequence[Judgement]) -> tuple[list[Judgement], int]:
    """Return the rows of questions whose scores agree with the ranking, and the number of other questions."""
    wrong = {question for question, own in by_question(rows).items() if contradicts_ranking(own)}
    return [row for row in rows if row.question_id not in wrong], len(wrong)


def first_questions(rows: Sequence[Judgement], limit: int) -> tuple[list[Judgement], int]:
    """Return the rows of the first whole questions, at most `limit` rows, and the number of other questions."""
    taken, total = set(), 0
    questions = by_question(rows)
    for question, own in questions.items():
        total += len(own)
        if total > limit:
            break
        taken.add(question)
    if rows and not taken:
        problem = f"{limit} is less than the {total} rows of the first question; raise it"
        raise InputError(f"params.yaml: prepare_data.max_judgements: {problem}")
    return [row for row in rows if row.question_id in taken], len(questions) - len(taken)


def cap_scores(rows: Sequence[Judgement], max_share: float, seed: int) -> tuple[list[Judgement], int]:
    """Drop as few rows as needed for no score to exceed `max_share` of the rest; return the rest and the drop count.

    The hash of (seed, question, response) picks the rows to drop, so that rows added later move few others. Every score
    keeps at least one row.
    """
    if not rows:
        return [], 0
    counts = Counter(row.score for row in rows)
    # The share of the most frequent score grows with the cap, so the last cap that fits is the largest.
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
