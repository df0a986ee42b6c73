"""The IFT data of the next iteration: the parent's rows and the responses with a high score."""

from collections import Counter
from collections.abc import Iterable, Sequence

from align.core.rows import Instruction, ScoredResponse
from align.report.statistics import words


def good_rows(rows: Iterable[ScoredResponse], accept_score: float, iteration: str, judge: str) -> list[Instruction]:
    """Return as IFT rows the best finished response of each prompt with a score of at least `accept_score`."""
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
    pool: Sequence[Instruction], candidates: Iterable[Instruction], max_generated_share: float
) -> tuple[list[Instruction], Counter[str]]:
    """Return `pool` with new candidates, best score first, and the number of candidates by outcome.

    A candidate is a duplicate if the pool has its prompt, up to case and punctuation. Generated rows, also those of
    earlier iterations, stay within `max_generated_share` of the result: a model trained on its own text alone loses
    diversity.
    """
    known = {tuple(words(row.prompt)) for row in pool}
    seeds = sum(row.source == "seed" for row in pool)
    generated = len(pool) - seeds
    outcomes = Counter[str]()
    accepted = []
    for row in sorted(candidates, key=lambda row: (-(row.score or 0.0), row.id)):
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
