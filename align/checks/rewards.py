"""Checkers for `ppo.rewards`: rewards of replies that plain code decides (docs/PPO.md)."""

import json
import re
from decimal import Decimal
from functools import cache
from typing import Any

from align.checks.checking import check_reply
from align.checks.pieces import answer_of, normalised
from align.checks.prompts import CheckedPrompt
from align.core.errors import quoted
from align.core.rows import FinishReason, parse_row

# A minus belongs to its number unless it follows a digit, where it subtracts: "10-7".
_NUMBER = re.compile(r"(?:(?<![0-9])-)?[0-9]+(?:,[0-9]{3}(?![0-9]))*(?:\.[0-9]+)?")
_MINUS = str.maketrans({0x2212: "-", 0x2013: "-"})


def checks_passed(prompt: str, response: str, row: dict[str, Any], finish_reason: FinishReason) -> float:
    """Return the share of the row's `checks` that a reply passes strictly, as in the evaluation (docs/DATA.md).

    Raises:
        InputError: the row has no `checks`, or one is not of the format.
    """
    columns = {key: row[key] for key in ("checks",) if key in row}
    strict, _ = check_reply(_checked(prompt, json.dumps(columns)), response, finish_reason)
    return sum(strict) / len(strict)


def right_answer(prompt: str, response: str, row: dict[str, Any], finish_reason: FinishReason) -> float:
    """Return 1 if a reply gives the row's `answer`, else 0.

    If the answer is a number, the last number of the reply must equal it: "37 + 5 = 42." gives 42. Any other answer
    must be the whole reply, in the form in which check `answer` compares. A reply that was cut off is no answer.

    Raises:
        ValueError: the row has no `answer` that is a text or a number.
    """
    answer = row.get("answer")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float) or not str(answer).strip():
        raise ValueError(f'the row needs a column "answer", a text or a number, got {quoted(answer)}')
    if finish_reason != "stop":
        return 0.0
    wanted, text = (normalised(part).strip().translate(_MINUS) for part in (str(answer), response))
    if _NUMBER.fullmatch(wanted) is None:
        return float(answer_of(text) == answer_of(wanted))
    found = _NUMBER.findall(text)
    return float(bool(found) and _number(found[-1]) == _number(wanted))


def _number(text: str) -> Decimal:
    return Decimal(text.replace(",", ""))


@cache
def _checked(prompt: str, columns: str) -> CheckedPrompt:
    return parse_row("the row", {"id": "row", "prompt": prompt, **json.loads(columns)}, CheckedPrompt)
