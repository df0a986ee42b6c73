"""Rows of data/eval with values that a test need not name."""

from collections.abc import Sequence
from typing import Any

from align.core.rows import Answer, CheckedAnswer


def answer(name: str, **changes: Any) -> Answer:
    """Return an answer that ends, to the held-out prompt of this id."""
    values = {
        "id": name,
        "category": "c",
        "turn": 1,
        "prompt": f"Question {name}?",
        "response": "It is.",
        "finish_reason": "stop",
        "num_tokens": 3,
        "judge_score": 2.5,
        "judge_failure": None,
        "reward": 0.0,
        "kl_to_base": 0.0,
        "kl_to_m0": 0.0,
    }
    return Answer.model_validate(values | changes)


def checked_answer(name: str, strict: Sequence[bool], loose: Sequence[bool] | None = None) -> CheckedAnswer:
    """Return an answer to the checked prompt of this id; the loose checks are the strict ones unless given."""
    return CheckedAnswer(
        id=name,
        prompt=f"Task {name}.",
        response="It is.",
        finish_reason="stop",
        num_tokens=3,
        strict=list(strict),
        loose=list(strict if loose is None else loose),
    )
