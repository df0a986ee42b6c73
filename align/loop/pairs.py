"""Preference pairs from scored responses: best against worst of each prompt."""

from collections import Counter
from collections.abc import Iterable, Sequence

from align.core.rows import Message, PreferencePair, ScoredResponse


def best_and_worst(
    samples: Sequence[ScoredResponse],
    min_margin: float,
    length_rho: float = 0.0,
    chosen_must_end: bool = False,
    reject_each_ending: bool = False,
) -> list[tuple[ScoredResponse, ScoredResponse]] | str:
    """Return (chosen, rejected) of one prompt's responses, once or twice, or why they make no pair.

    Failed judgements and empty responses are ignored. The lowest score is rejected; with `reject_each_ending`, the
    lowest of those that end and the lowest of those that were cut off are, in a pair each. The shortest response within
    `length_rho` of the highest score is chosen (Meta-Rewarding, arXiv 2407.19594: replies then do not grow with each
    iteration); at 0 the highest score is chosen, whatever its length. With `chosen_must_end`, a response that was cut
    off can be rejected but not chosen. Ties go to the lower sample number. Scores that are equal or closer than
    `min_margin` make no pair.
    """
    valid = [(sample.score, sample) for sample in samples if sample.score is not None and sample.response.strip()]
    if len(valid) < 2:
        return "fewer than two judged responses"
    eligible = [item for item in valid if item[1].finish_reason == "stop" or not chosen_must_end]
    if not eligible:
        return "no response ends by itself"
    highest = max(score for score, _ in eligible)
    near = [(score, sample) for score, sample in eligible if score >= highest - length_rho]
    if length_rho > 0:
        _, best = min(near, key=lambda item: (item[1].num_tokens, -item[0], item[1].sample))
    else:
        _, best = min(near, key=lambda item: item[1].sample)
    groups = [valid]
    if reject_each_ending:
        groups = [[item for item in valid if item[1].finish_reason == reason] for reason in ("stop", "length")]
    worst = [min(group, key=lambda item: (item[0], -item[1].sample))[1] for group in groups if group]
    different = [sample for sample in worst if sample.response.strip() != best.response.strip()]
    if not different:
        return "identical responses"
    pairs = [(best, sample) for sample in different if 0 < margin_of(best, sample) >= min_margin]
    return pairs or "margin too small"


def margin_of(chosen: ScoredResponse, rejected: ScoredResponse) -> float:
    """Return the difference of two responses' scores."""
    assert chosen.score is not None
    assert rejected.score is not None
    return chosen.score - rejected.score


def build_pairs(
    rows: Iterable[ScoredResponse],
    min_margin: float,
    length_rho: float = 0.0,
    chosen_must_end: bool = False,
    reject_each_ending: bool = False,
) -> tuple[list[PreferencePair], Counter[str]]:
    """Pair the responses of each prompt, see `best_and_worst`; return the pairs and the other prompts by reason.

    A prompt's second pair has the id of the prompt with `-2` after it.
    """
    by_prompt: dict[str, list[ScoredResponse]] = {}
    for row in rows:
        by_prompt.setdefault(row.id, []).append(row)
    pairs, dropped = [], Counter[str]()
    for prompt_id, samples in by_prompt.items():
        outcome = best_and_worst(samples, min_margin, length_rho, chosen_must_end, reject_each_ending)
        if isinstance(outcome, str):
            dropped[outcome] += 1
            continue
        pairs += [
            PreferencePair(
                id=prompt_id if number == 1 else f"{prompt_id}-{number}",
                messages=[Message(role="user", content=best.prompt)],
                chosen=best.response,
                rejected=worst.response,
                chosen_finish_reason=best.finish_reason,
                rejected_finish_reason=worst.finish_reason,
                margin=margin_of(best, worst),
            )
            for number, (best, worst) in enumerate(outcome, start=1)
        ]
    return pairs, dropped
