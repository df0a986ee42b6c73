"""The IFT data of the next iteration: the parent's, and the responses that the judge found good enough."""

from collections import Counter
from collections.abc import Iterable, Sequence

from align.core.rows import Instruction, ScoredResponse
from align.report.statistics import words


def good_rows(rows: Iterable[ScoredResponse], accept_score: float, iteration: str, judge: str) -> list[Instruction]:
    """Return the best finished response of each prompt as an IFT row, where its score reaches `accept_score`."""
    best: dict[str, tuple[float, ScoredResponse]] = {}
    for row in rows:
        if row.score is None or row.score < accept_score or row.finish_reason != "stop" or not row.response.strip():
            continue
        if row.id not in best or row.score > best[row.id][0]:
            best[row.id] = row.score, row
    return [
        Instruction(
            id=row.id,
            category="generated",
            prompt=row.prompt,
            completion=row.response,
            source="generated",
            iteration=iteration,
            score=score,
            judge=judge,
        )
        for score, row in best.values()
    ]


def grow(
    pool: Sequence[Instruction], found: Iterable[Instruction], max_generated_share: float
) -> tuple[list[Instruction], Counter[str]]:
    """Return `pool` with the rows of `found` that it lacks, the best scored first to come in, and what became of each.

    A row whose prompt the pool has, in other capitals or punctuation, is a duplicate. Generated rows, those of earlier
    iterations included, stay within `max_generated_share` of the result: a model fed on its own text alone narrows.

    Returns:
        The rows, and the number of those of `found` by outcome: `accepted`, `duplicate`, `over the share`.
    """
    known = {tuple(words(row.prompt)) for row in pool}
    seeds = sum(row.source == "seed" for row in pool)
    generated = len(pool) - seeds
    outcomes = Counter[str]()
    accepted = []
    for row in sorted(found, key=lambda row: (-(row.score or 0.0), row.id)):
        key = tuple(words(row.prompt))
        if key in known:
            outcomes["duplicate"] += 1
        elif generated + 1 > max_generated_share * (seeds + generated + 1):
            outcomes["over the share"] += 1
        else:
            known.add(key)
            generated += 1
            accepted.append(row)
            outcomes["accepted"] += 1
    return [*pool, *sorted(accepted, key=lambda row: row.id)], outcomes
