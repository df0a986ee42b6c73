"""The judge without its model: the request, the parser of replies, and the score of a digit distribution.

The rubric is the additive 5-point scale of Self-Rewarding Language Models (arXiv 2401.10020, figure 2), shortened.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from align.core.params import Settings
from align.core.templates import render

SCORE_PREFIX = "score: "
DIGITS = ("0", "1", "2", "3", "4", "5")
# A line that gives a score, with any markup around it: "**Score:** 3", "- The final score: 4/5."
_SCORE_LINE = re.compile(
    r"^(?:[^\w\n]|_)*+(?:(?:the|my)[ \t]++)?(?:(?:final|total|overall)[ \t]++)?score[*_`\"']*[:\uff1a](.*)$",
    re.IGNORECASE | re.MULTILINE,
)
# Its number: an integer, alone or out of 5; "4.5", "4-5", "10", "4/10", "3 or 4" and "-1" are none of the scale.
_NUMBER = re.compile(
    r"[\s*_`\"'(\[]*(\d+)[*_`\"')\]]*(?:\s*(?:/|out of|of)\s*5\b)?[*_`\"')\]]*"
    r"(?:[.,;:!?](?!\s*\d).*|\s+(?!(?:/|-|\u2013)\s*\d|(?:to|or|and|of|out of)\s+\d).*|\s*)",
    re.IGNORECASE,
)


class JudgeSettings(Settings):
    """Section `judge` of params.yaml."""

    model: Literal["m0", "reward"]
    use_parent: bool
    mode: Literal["logits", "sample", "checker", "reward"]
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
            raise ValueError(f"{value.replace('stages.lib', 'align.judge', 1)} (the checkers are now in align/judge)")
        return value

    @model_validator(mode="after")
    def _checker_is_named(self) -> Self:
        if (self.mode == "checker") != (self.checker is not None):
            raise ValueError("a checker (package.module:function) where mode is checker, and null otherwise")
        return self

    @model_validator(mode="after")
    def _model_fits_the_mode(self) -> Self:
        if (self.mode == "reward") != (self.model == "reward"):
            raise ValueError("model: reward where mode is reward, and m0 otherwise")
        if self.use_parent and self.mode in ("checker", "reward"):
            raise ValueError(f"use_parent: false where mode is {self.mode}, since no parent judges there")
        return self


@dataclass(frozen=True)
class Verdict:
    """The outcome of one judgement: a score from 0 to 5, or None with the reason in `failure`."""

    score: float | None
    failure: str | None = None
    digit_mass: float | None = None
    entropy: float | None = None
    judgements: tuple[str, ...] = ()


def judge_request(question: str, response: str) -> str:
    """Return the judge's request, with question and response between tags that their text cannot forge."""
    return render("judge.jinja", question=_defuse(question), response=_defuse(response))


def judge_reply(score: int, justification: str | None) -> str:
    """Return the reply to learn (EFT): the score first, where both judge modes read it, then any reason."""
    return f"{SCORE_PREFIX}{score}" + (f"\n{justification}" if justification else "")


def parse_score(reply: str) -> int | None:
    """Return the score in a judge's reply (without the prompt), or None if it has none.

    The last line that starts with `score:` counts, and no earlier one where it has no integer from 0 to 5.
    """
    lines = _SCORE_LINE.findall(reply)
    number = _NUMBER.fullmatch(lines[-1].rstrip()) if lines else None
    return int(number[1]) if number and number[1].lstrip("0") in ("", *DIGITS[1:]) else None


def verdict_of_digits(logprobs: Sequence[float], min_digit_mass: float) -> Verdict:
    """Score by the expected value over the digits 0-5 after `score: `, as in G-Eval (arXiv 2303.16634, equation 1).

    Args:
        logprobs: log-probabilities of the digits 0-5, in nats, over the whole vocabulary.
        min_digit_mass: the total probability of the digits below which the judgement fails.
    """
    masses = [math.exp(value) for value in logprobs]
    digit_mass = math.fsum(masses)
    if not digit_mass >= min_digit_mass or digit_mass == 0:  # `not >=` also catches NaN
        return Verdict(None, f"digit mass under {min_digit_mass}", digit_mass if math.isfinite(digit_mass) else None)
    shares = [mass / digit_mass for mass in masses]
    entropy = -math.fsum(p * math.log(p) for p in shares if p > 0)
    return Verdict(math.fsum(digit * p for digit, p in enumerate(shares)), None, digit_mass, entropy)


def verdict_of_reward(reward: float) -> Verdict:
    """Score by 5 sigmoid(reward), where `reward` is a reward model's centred score.

    Under the model's own Bradley-Terry loss, sigmoid(reward) is the probability that the response is preferred to one
    of score 0, the mean of reference answers. So thresholds and margins keep the judge's scale, and 2.5 is average.
    """
    if not math.isfinite(reward):
        return Verdict(None, "the reward is not a finite number")
    return Verdict(2.5 * (1 + math.tanh(reward / 2)))  # 5 sigmoid(reward), which cannot overflow


def verdict_of_replies(replies: Sequence[str]) -> Verdict:
    """Average the scores of sampled replies; the judgement fails unless more than half of them have one."""
    scores = [score for reply in replies if (score := parse_score(reply)) is not None]
    judgements = tuple(replies)
    if 2 * len(scores) <= len(replies):
        return Verdict(None, f"a score in {len(scores)} of {len(replies)} judgements", judgements=judgements)
    return Verdict(sum(scores) / len(scores), judgements=judgements)


_SCORE_LABEL = re.compile(r"(score)([\s*_`\"']*[:\uff1a])", re.IGNORECASE)
# What can only imitate the request or a judgement: a control token (and the role after it), a tag of the request, or a
# line with nothing but a score.
_FORGED = re.compile(  # possessive: linear in a text's length
    r"<\|[^<>|]*\|>(?:(?:system|user|assistant)\b)?|</?\s*(?:question|response)\s*>"
    r"|^[^\w\n]*+score[^\w\n:\uff1a]*+[:\uff1a][^\w\n]*+\d++[^\w\n]*+(?:\d++[^\w\n]*+)?$",
    re.IGNORECASE | re.MULTILINE,
)


def without_forgery(text: str) -> str:
    """Remove every imitation of the judge's request or reply from a text, also those that a removal creates.

    A response is judged as if any `</response>`, `<|im_end|>` or line `score: 5` around it were absent, so that they
    cannot change its score.
    """
    removed = 1
    while removed:
        text, removed = _FORGED.subn("", text)
    return text.strip()


def _defuse(text: str) -> str:
    # With a space after each `<` no tag or special token (`</s>`) is left, and a sampled judgement that quotes
    # `score :` has no line that the parser reads.
    return _SCORE_LABEL.sub(r"\1 \2", without_forgery(text).replace("<", "< "))
