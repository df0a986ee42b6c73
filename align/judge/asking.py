"""Score responses with a causal LM or a checker."""

from collections.abc import Callable, Sequence

from align.checks.loading import load_checker, located
from align.core.errors import InputError, quoted
from align.generation.generator import Generator
from align.generation.sampling import SamplingParams
from align.judge.request import (
    DIGITS,
    SCORE_PREFIX,
    JudgeSettings,
    Verdict,
    judge_request,
    verdict_of_digits,
    verdict_of_replies,
    without_forgery,
)
from align.models.tokenization import encode_choices, encode_user
from align.run.runtime import row_seed

# (prompt, response) -> score from 0 to 5, or None if it cannot judge the prompt.
Checker = Callable[[str, str], float | None]


def judge_responses(
    generator: Generator,
    rows: Sequence[tuple[str, str]],
    settings: JudgeSettings,
    seed: int,
    *,
    description: str | None = None,
) -> list[Verdict]:
    """Judge each (question, response); an empty response is a failure, not a score.

    In mode `reward` the loop asks no causal LM. One that is asked all the same, by stage evaluate, scores as in mode
    `logits`.
    """
    empty = Verdict(None, "empty response")
    if settings.checker is not None:
        checker = load_checker("judge.checker", settings.checker)
        return [verdict_of_checker(checker, *row) if row[1].strip() else empty for row in rows]
    verdicts = [empty] * len(rows)
    asked = [i for i, (_, response) in enumerate(rows) if without_forgery(response)]
    if not asked:
        return verdicts
    requests = [judge_request(*rows[i]) for i in asked]
    if settings.mode in ("logits", "reward"):
        try:
            encoded = [encode_choices(generator.tokenizer, request, SCORE_PREFIX, DIGITS) for request in requests]
        except ValueError as error:
            raise InputError(f"params.yaml: judge.mode: {error}; use `sample`") from None
        logprobs = generator.next_token_logprobs([ids for ids, _ in encoded], encoded[0][1], description=description)
        answers = [verdict_of_digits(row, settings.min_digit_mass) for row in logprobs]
    else:
        completions = generator.generate(
            [encode_user(generator.tokenizer, request) for request in requests],
            SamplingParams(settings.max_new_tokens, settings.temperature, settings.top_p),
            [row_seed(seed, "judge", request) for request in requests],
            n=settings.samples,
            description=description,
        )
        answers = [verdict_of_replies([completion.text for completion in samples]) for samples in completions]
    for i, verdict in zip(asked, answers, strict=True):
        verdicts[i] = verdict
    return verdicts


def verdict_of_checker(checker: Checker, prompt: str, response: str) -> Verdict:
    """Score by a checker; raise `InputError` unless it returns None or a number from 0 to 5."""
    try:
        score = checker(prompt, response)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise InputError(
            f"params.yaml: judge.checker: raised {located(error)} on the prompt {quoted(prompt)}; fix it, or "
            "return None for prompts that it cannot judge"
        ) from None
    if score is None:
        return Verdict(None, "the checker does not know this prompt")
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 5:
        raise InputError(
            f"params.yaml: judge.checker: returned {quoted(score)}; expected a number from 0 to 5, or None"
        )
    return Verdict(float(score))
