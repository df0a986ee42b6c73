"""An example of a reward: `ppo.rewards: [{checker: checkers.example:short, weight: 0.1}]`."""

from typing import Any


def short(prompt: str, response: str, row: dict[str, Any]) -> float:
    """Return 1 for a reply of at most `max_words` words, a column of the prompt's row (30 without it), else 0."""
    return float(len(response.split()) <= row.get("max_words", 30))
