"""New prompts that are new: ROUGE-L between texts, and a filter of generated prompts with a reason for each drop."""

import re
from collections.abc import Iterable

from rapidfuzz.distance import LCSseq

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Return the lower-case words of a text, without punctuation."""
    return _WORD.findall(text.lower())


def rouge_l(a: list[str], b: list[str]) -> float:
    """Return ROUGE-L F1 of two word lists: 2 * LCS / (len(a) + len(b)); 0 when one is empty (Lin, 2004)."""
    if not a or not b:
        return 0.0
    return 2 * LCSseq.similarity(a, b) / (len(a) + len(b))


class NoveltyFilter:
    """Accepts a prompt when it is well formed and unlike everything known or accepted before.

    Args:
        known: texts that a new prompt must not resemble (seeds, evaluation prompts).
        min_words, max_words: length limits.
        max_rouge_l: a prompt at or above this ROUGE-L to any known text is not new (Self-Instruct uses 0.7).
    """

    def __init__(self, known: Iterable[str], *, min_words: int, max_words: int, max_rouge_l: float) -> None:
        self._known = [words(text) for text in known]
        self._limits, self._max_rouge_l = (min_words, max_words), max_rouge_l

    def reason_to_drop(self, text: str) -> str | None:
        """Return why `text` is not accepted, or None; what is accepted is known from then on."""
        tokens = words(text)
        low, high = self._limits
        if len(tokens) < low:
            return "too short"
        if len(tokens) > high:
            return "too long"
        if len(set(tokens)) < len(tokens) / 2:
            return "repeats itself"
        if tokens in self._known:
            return "exact duplicate"
        if any(rouge_l(tokens, other) >= self._max_rouge_l for other in self._known):
            return "near duplicate"
        self._known.append(tokens)
        return None
