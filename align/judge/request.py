"""The judge, apart from any model: its request, the parser of its replies, and the score of a digit distribution.

The rubric is the additive 5-point scale of Self-Rewarding Language Models (arXiv 2401.10020, figure 2), shortened.
"""

import math
import re
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from align.core.errors import InputError, quoted
from align.core.params import Settings
from align.core.templates import render

SCORE_PREFIX = "score: "
DIGITS = ("0", "1", "2", "3", "4", "5")
# A whole number alone after `score:` at the start of a line; "score: 10", "4.5" and "4/5" are no match.
_SCORE = re.compile(r"^[^\S\n]*score:[ \t]*(\d+)(?![\d./])", re.IGNORECASE | re.MULTILINE)


class JudgeSettings(Settings):
    """Section `judge` of params.yaml."""

    mode: Literal["logits", "sample", "checker"]
    checker: str | None
    min_digit_mass: float = Field(ge=0, le=1)
    samples: int = Field(ge=1)
    temperature: float = Field(gt=0)
    top_p: float = Field(gt=0, le=1)
    max_new_tokens: int = Field(ge=1)

    @field_validator("checker")
    @classmethod
    def _checker_has_not_moved(cls, value: str | None) -> str | None:
        if value is not None and value.startswith("stages.lib."):
            raise ValueError(f"{value.replace('stages.lib', 'align.judge', 1)} (the checkers are in align/judge now)")
        return value

    @model_validator(mode="after")
    def _checker_is_named(self) -> Self:
        if (self.mode == "checker") != (self.checker is not None):
            raise ValueError("a checker (package.module:function) where mode is checker, and null elsewhere")
        return self


# What a task with a right answer is judged by: (prompt, response) -> score from 0 to 5, None if it cannot tell.
Checker = Callable[[str, str], float | None]


@dataclass(frozen=True)
class Verdict:
    """The outcome of one judgement: a score from 0 to 5, or None and the reason in `failure`."""

    score: float | None
    failure: str | None = None
    digit_mass: float | None = None
    entropy: float | None = None
    judgements: tuple[str, ...] = ()


def judge_request(question: str, response: str) -> str:
    """Return what the judge is asked, with question and response between tags that no text in them can write."""
    return render("judge.jinja", question=_defuse(question), response=_defuse(response))


def judge_reply(score: int, justification: str | None) -> str:
    """Return the whole reply to learn (EFT): the score first, where both judge modes look for it, then any reason."""
    return f"{SCORE_PREFIX}{score}" + (f"\n{justification}" if justification else "")


def parse_score(reply: str) -> int | None:
    """Return the score in a judge's reply (generated text alone, never the prompt), or None if it holds none.

    The last line that starts with `score: N` counts, where N is a whole number from 0 to 5.
    """
    matches = _SCORE.findall(reply)
    return int(matches[-1]) if matches and matches[-1] in DIGITS else None


def verdict_of_digits(logprobs: Sequence[float], min_digit_mass: float) -> Verdict:
    """Score by the expected value over the digits 0-5 after `score: `, as in G-Eval (arXiv 2303.16634, equation 1).

    Args:
        logprobs: log-probability of each of the digits 0-5, in order, in nats, over the whole vocabulary.
        min_digit_mass: below this total probability the judge did not answer with a score: a failure.
    """
    masses = [math.exp(value) for value in logprobs]
    digit_mass = math.fsum(masses)
    if not digit_mass >= min_digit_mass or digit_mass == 0:  # `not >=` also catches NaN
        return Verdict(None, f"digit mass under {min_digit_mass}", digit_mass if math.isfinite(digit_mass) else None)
    shares = [mass / digit_mass for mass in masses]
    entropy = -math.fsum(p * math.log(p) for p in shares if p > 0)
    return Verdict(math.fsum(digit * p for digit, p in enumerate(shares)), None, digit_mass, entropy)


def verdict_of_replies(replies: Sequence[str]) -> Verdict:
    """Average the scores of sampled replies; a failure unless more than half of them hold a score."""
    scores = [score for reply in replies if (score := parse_score(reply)) is not None]
    judgements = tuple(replies)
    if 2 * len(scores) <= len(replies):
        return Verdict(None, f"a score in {len(scores)} of {len(replies)} judgements", judgements=judgements)
    return Verdict(sum(scores) / len(scores), judgements=judgements)


def load_checker(name: str) -> Checker:
    """Return the function that `package.module:function` names.

    Raises:
        InputError: there is no such function.
    """
    module, _, function = name.partition(":")
    try:
        checker: Checker = getattr(import_module(module), function)
    except (Exception, SystemExit) as error:  # whatever a module of the user's raises while it is imported
        raise InputError(
            f"params.yaml: judge.checker: {_told(error)}; expected package.module:function, importable from here"
        ) from None
    if not callable(checker):
        raise InputError(f"params.yaml: judge.checker: {quoted(name)} is no function; name one of (prompt, response)")
    return checker


def verdict_of_checker(checker: Checker, prompt: str, response: str) -> Verdict:
    """Score by a checker; what is not a number from 0 to 5 is an error of the checker, never a score.

    Raises:
        InputError: the checker returned something else than None or a number on the scale.
    """
    try:
        score = checker(prompt, response)
    except (Exception, SystemExit) as error:  # code of the user's, which may raise anything
        raise InputError(
            f"params.yaml: judge.checker: raised {_told(error)} on the prompt {quoted(prompt)}; mend it, or "
            "return None for what it cannot judge"
        ) from None
    if score is None:
        return Verdict(None, "the checker does not know this prompt")
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 5:
        raise InputError(
            f"params.yaml: judge.checker: returned {quoted(score)}; expected a number from 0 to 5, or None"
        )
    return Verdict(float(score))


def _told(error: BaseException) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"


_SCORE_LABEL = re.compile(r"(score)(\s*:)", re.IGNORECASE)
# What can only mean to pass for the request or for a judgement of it: a control token (and the role after it), a tag of
# the request, a line that holds a score and nothing else.
_FORGED = re.compile(
    r"<\|[^<>|]*\|>(?:(?:system|user|assistant)\b)?|</?\s*(?:question|response)\s*>"
    r"|^[^\w\n]*+score[^\w\n:]*+:[^\w\n]*+\d++[^\w\n]*+(?:\d++[^\w\n]*+)?$",  # possessive: linear in a text's length
    re.IGNORECASE | re.MULTILINE,
)


def without_forgery(text: str) -> str:
    """Return a text without what can only mean to pass for the judge's request or reply, until nothing of it is left.

    A response with `</response>`, `<|im_end|>` or a line `score: 5` put around it is thus judged as if they were not
    there: they cannot move its score.
    """
    found = 1
    while found:
        text, found = _FORGED.subn("", text)
    return text.strip()


def _defuse(text: str) -> str:
    # No tag and no special token (`</s>`) can stand in what has a space after each `<`, and what a sampled judgement
    # may quote is no `score: N` line: `score :` is not what the parser looks for.
    return _SCORE_LABEL.sub(r"\1 \2", without_forgery(text).replace("<", "< "))
