"""Scored responses to preference pairs: best against worst of each prompt."""

from collections import Counter
from collections.abc import Iterable, Sequence

from stages.lib.records import Message, PreferencePair, ScoredResponse


def best_and_worst(samples: Sequence[ScoredResponse], min_margin: float) -> tuple[ScoredResponse, ScoredResponse] | str:
    """Return the highest and the lowest scored of one prompt's responses, or why they make no pair.

    Failed judgements and empty responses take no part. Between equal scores the lower sample number wins, but a pair
    whose scores are closer than `min_margin`, or equal, is never made.
    """
    valid = [sample for sample in samples if sample.score is not None and sample.response.strip()]
    if len(valid) < 2:
        return "fewer than two judged responses"
    ranked = sorted(valid, key=lambda sample: (-(sample.score or 0.0), sample.sample))
    best, worst = ranked[0], ranked[-1]
    margin = (best.score or 0.0) - (worst.score or 0.0)
    if best.response.strip() == worst.response.strip():
        return "identical responses"
    if margin == 0 or margin < min_margin:
        return "margin too small"
    return best, worst


def build_pairs(rows: Iterable[ScoredResponse], min_margin: float) -> tuple[list[PreferencePair], Counter[str]]:
    """Pair the best with the worst response of each prompt, in order of first appearance.

    Returns:
        The pairs, and for the prompts without a pair how many there are by reason: pairs + reasons = prompts.
    """
    by_prompt: dict[str, list[ScoredResponse]] = {}
    for row in rows:
        by_prompt.setdefault(row.id, []).append(row)
    pairs, dropped = [], Counter[str]()
    for prompt_id, samples in by_prompt.items():
        match best_and_worst(samples, min_margin):
            case str(reason):
                dropped[reason] += 1
            case (best, worst):
                pairs.append(
                    PreferencePair(
                        id=prompt_id,
                        messages=[Message(role="user", content=best.prompt)],
                        chosen=best.response,
                        rejected=worst.response,
                        chosen_finish_reason=best.finish_reason,
                        rejected_finish_reason=worst.finish_reason,
                        margin=(best.score or 0.0) - (worst.score or 0.0),
                    )
                )
    return pairs, dropped
