"""Scored responses to preference pairs: best against worst of each prompt."""

from collections import Counter
from collections.abc import Iterable, Sequence

from align.core.rows import Message, PreferencePair, ScoredResponse


def best_and_worst(
    samples: Sequence[ScoredResponse], min_margin: float, length_rho: float = 0.0
) -> tuple[ScoredResponse, ScoredResponse] | str:
    """Return the chosen and the rejected of one prompt's responses, or why they make no pair.

    Failed judgements and empty responses take no part. Rejected is the lowest scored, chosen the shortest of those
    within `length_rho` of the highest score (Meta-Rewarding, arXiv 2407.19594: it keeps replies from growing with each
    iteration; 0 is the highest scored, whatever its length). Between equal ones the lower sample number wins, but a
    pair whose scores are closer than `min_margin`, or equal, is never made.
    """
    valid = [(sample.score, sample) for sample in samples if sample.score is not None and sample.response.strip()]
    if len(valid) < 2:
        return "fewer than two judged responses"
    highest = max(score for score, _ in valid)
    near = [(score, sample) for score, sample in valid if score >= highest - length_rho]
    if length_rho > 0:
        _, best = min(near, key=lambda item: (item[1].num_tokens, -item[0], item[1].sample))
    else:
        _, best = min(near, key=lambda item: item[1].sample)
    _, worst = min(valid, key=lambda item: (item[0], -item[1].sample))
    margin = margin_of(best, worst)
    if best.response.strip() == worst.response.strip():
        return "identical responses"
    if margin <= 0 or margin < min_margin:
        return "margin too small"
    return best, worst


def margin_of(chosen: ScoredResponse, rejected: ScoredResponse) -> float:
    """Return by how much the judge prefers one response to another, both of which it has scored."""
    assert chosen.score is not None
    assert rejected.score is not None
    return chosen.score - rejected.score


def build_pairs(
    rows: Iterable[ScoredResponse], min_margin: float, length_rho: float = 0.0
) -> tuple[list[PreferencePair], Counter[str]]:
    """Pair a best with a worst response of each prompt (see `best_and_worst`), in order of first appearance.

    Returns:
        The pairs, and for the prompts without a pair how many there are by reason: pairs + reasons = prompts.
    """
    by_prompt: dict[str, list[ScoredResponse]] = {}
    for row in rows:
        by_prompt.setdefault(row.id, []).append(row)
    pairs, dropped = [], Counter[str]()
    for prompt_id, samples in by_prompt.items():
        match best_and_worst(samples, min_margin, length_rho):
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
                        margin=margin_of(best, worst),
                    )
                )
    return pairs, dropped
