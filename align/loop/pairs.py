"""Preference pairs from scored responses: best against worst of each prompt, of all or of those of like length."""

from collections import Counter
from collections.abc import Iterable, Sequence

from align.core.rows import Message, PreferencePair, ScoredResponse

Pairs = list[tuple[ScoredResponse, ScoredResponse]]  # of (chosen, rejected)
MAX_ALIKE = 2  # pairs of a prompt whose replies have like lengths


def best_and_worst(
    samples: Sequence[ScoredResponse], min_margin: float, length_rho: float = 0.0, chosen_must_end: bool = False
) -> Pairs | str:
    """Return the pair (chosen, rejected) of one prompt's responses in a list, or why they make none.

    Failed judgements and empty responses are ignored. The lowest score is rejected. The shortest response within
    `length_rho` of the highest score is chosen (Meta-Rewarding, arXiv 2407.19594: replies then do not grow with each
    iteration); at 0 the highest score is chosen, whatever its length. With `chosen_must_end`, a response that was cut
    off can be rejected but not chosen. Ties go to the lower sample number. Scores that are equal or closer than
    `min_margin` make no pair.
    """
    valid = judged(samples)
    if isinstance(valid, str):
        return valid
    eligible = [item for item in valid if item[1].finish_reason == "stop" or not chosen_must_end]
    if not eligible:
        return "no response ends by itself"
    highest = max(score for score, _ in eligible)
    near = [(score, sample) for score, sample in eligible if score >= highest - length_rho]
    if length_rho > 0:
        _, best = min(near, key=lambda item: (item[1].num_tokens, -item[0], item[1].sample))
    else:
        _, best = min(near, key=lambda item: item[1].sample)
    _, worst = min(valid, key=lambda item: (item[0], -item[1].sample))
    if worst.response.strip() == best.response.strip():
        return "identical responses"
    return [(best, worst)] if 0 < margin_of(best, worst) >= min_margin else "margin too small"


def pairs_alike(
    samples: Sequence[ScoredResponse], min_margin: float, max_length_gap: float, chosen_must_end: bool = False
) -> Pairs | str:
    """Return up to `MAX_ALIKE` pairs (chosen, rejected) of one prompt's responses, or why they make none.

    The two of a pair end alike, and their numbers of tokens differ by at most `max_length_gap` of the larger one, so
    that what is learned from them is content. Pairs of larger margins come first, and no response is in two. All else
    is as in `best_and_worst`.
    """
    valid = judged(samples)
    if isinstance(valid, str):
        return valid
    eligible = [sample for _, sample in valid if sample.finish_reason == "stop" or not chosen_must_end]
    if not eligible:
        return "no response ends by itself"
    alike = [
        (best, worst)
        for best in eligible
        for _, worst in valid
        if best.finish_reason == worst.finish_reason
        and best.response.strip() != worst.response.strip()
        and abs(best.num_tokens - worst.num_tokens) <= max_length_gap * max(best.num_tokens, worst.num_tokens)
    ]
    if not alike:
        return "no two responses of like length and ending"
    far = [pair for pair in alike if 0 < margin_of(*pair) >= min_margin]
    pairs: Pairs = []
    for best, worst in sorted(far, key=lambda pair: (-margin_of(*pair), pair[0].sample, -pair[1].sample)):
        used = {sample.sample for pair in pairs for sample in pair}
        if len(pairs) < MAX_ALIKE and not used & {best.sample, worst.sample}:
            pairs.append((best, worst))
    return pairs or "margin too small"


def judged(samples: Sequence[ScoredResponse]) -> list[tuple[float, ScoredResponse]] | str:
    """Return the responses that have a text and a score, with it, or why they are too few."""
    valid = [(sample.score, sample) for sample in samples if sample.score is not None and sample.response.strip()]
    return valid if len(valid) >= 2 else "fewer than two judged responses"


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
    max_length_gap: float | None = None,
) -> tuple[list[PreferencePair], Counter[str]]:
    """Pair the responses of each prompt; return the pairs and the other prompts by reason.

    See `best_and_worst` and, where `max_length_gap` is a number, `pairs_alike`. A prompt's second pair has the id of
    the prompt with `-2` after it.
    """
    by_prompt: dict[str, list[ScoredResponse]] = {}
    for row in rows:
        by_prompt.setdefault(row.id, []).append(row)
    pairs, dropped = [], Counter[str]()
    for prompt_id, samples in by_prompt.items():
        if max_length_gap is None:
            outcome = best_and_worst(samples, min_margin, length_rho, chosen_must_end)
        else:
            outcome = pairs_alike(samples, min_margin, max_length_gap, chosen_must_end)
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
