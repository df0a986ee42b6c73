"""The judge, apart from any model: its request, the parser of its replies, and the score of a digit distribution.

The rubric is the additive 5-point scale of Self-Rewarding Language Models (arXiv 2401.10020, figure 2), shortened.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from stages.lib.params import Settings
from stages.lib.templates import render

SCORE_PREFIX = "score: "
DIGITS = ("0", "1", "2", "3", "4", "5")
# A whole number alone after `score:` at the start of a line; "score: 10", "4.5" and "4/5" are no match.
_SCORE = re.compile(r"^\s*score:[ \t]*(\d+)(?![\d./])", re.IGNORECASE | re.MULTILINE)


class JudgeSettings(Settings):
    """Section `judge` of params.yaml."""

    mode: Literal["logits", "sample"]
    min_digit_mass: float = Field(ge=0, le=1)
    samples: int = Field(ge=1)
    temperature: float = Field(gt=0)
    top_p: float = Field(gt=0, le=1)
    max_new_tokens: int = Field(ge=1)


@dataclass(frozen=True)
class Verdict:
    """The outcome of one judgement: a score from 0 to 5, or None and the reason in `failure`."""

    score: float | None
    failure: str | None = None
    digit_mass: float | None = None
    entropy: float | None = None
    judgements: tuple[str, ...] = ()


def judge_request(question: str, response: str) -> str:
    """Return what the judge is asked.

    The response comes last, so that no text in it can close it early; special tokens in it are broken up.
    """
    return render("judge.jinja", question=_defuse(question), response=_defuse(response))


def judge_reply(score: int, justification: str) -> str:
    """Return the whole reply to learn (EFT): the score first, where both judge modes look for it."""
    return f"{SCORE_PREFIX}{score}\n{justification}"


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


def _defuse(text: str) -> str:
    # `<|im_end|>` or `</s>` inside a text would be read as the end of the turn: a space makes plain text of it.
    return text.replace("<", "< ")
