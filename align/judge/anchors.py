"""A judge's scores of the held-out judged responses, the same for every judge: anchors that show its drift."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import count

from align.core.rows import AnchorScore, Judgement
from align.judge.request import Verdict
from align.report.statistics import agreement, bootstrap_interval, mean, spearman, win_rate


def anchor_scores(judgements: Sequence[Judgement], verdicts: Sequence[Verdict]) -> list[AnchorScore]:
    """Return a row for each held-out response with the human score and the judge's."""
    numbers: defaultdict[str, Iterator[int]] = defaultdict(count)
    return [
        AnchorScore(
            question_id=row.question_id,
            number=next(numbers[row.question_id]),
            score=row.score,
            predicted=verdict.score,
            failure=verdict.failure,
        )
        for row, verdict in zip(judgements, verdicts, strict=True)
    ]


def as_judge(judgements: Sequence[Judgement], verdicts: Sequence[Verdict]) -> dict[str, float | int | None]:
    """Return `agreement` of a judge's verdicts with the human scores of the held-out judgements."""
    predicted = [verdict.score for verdict in verdicts]
    return agreement(predicted, [row.score for row in judgements], [row.question_id for row in judgements])


def drift(before: Sequence[AnchorScore], after: Sequence[AnchorScore]) -> dict[str, float | None]:
    """Compare two judges: `shift` is the mean change of a score, `same_order` Spearman's correlation."""
    pairs = [
        (a.predicted, b.predicted)
        for a, b in zip(before, after, strict=True)
        if a.predicted is not None and b.predicted is not None
    ]
    return {
        "shift": mean([b - a for a, b in pairs]),
        "same_order": spearman([a for a, _ in pairs], [b for _, b in pairs]),
    }


def relevance(
    judgements: Sequence[Judgement],
    verdicts: Sequence[Verdict],
    off_topic: Sequence[Judgement],
    off_topic_verdicts: Sequence[Verdict],
) -> dict[str, float | int | None]:
    """Return how often a judge scores a question's best response above a good one to another question.

    A judge that ignores the question gets 0.5. Questions with a failed judgement are left out.
    """
    best: dict[str, tuple[int, float | None]] = {}
    for row, verdict in zip(judgements, verdicts, strict=True):
        if row.question_id not in best or row.score > best[row.question_id][0]:
            best[row.question_id] = row.score, verdict.score
    pairs = [
        (own, verdict.score)
        for row, verdict in zip(off_topic, off_topic_verdicts, strict=True)
        if (own := best[row.question_id][1]) is not None and verdict.score is not None
    ]
    wins = win_rate([own for own, _ in pairs], [other for _, other in pairs])
    low, high = bootstrap_interval([[win] for win in wins]) or (None, None)
    return {"questions": len(wins), "accuracy": mean(wins), "accuracy_low": low, "accuracy_high": high}
