"""The filter of new prompts: ROUGE-L between texts, an exact search by it, and a reason for each drop."""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain

from rapidfuzz.distance import LCSseq

from align.core.errors import InputError
from align.core.language import check_language, language_of
from align.report.statistics import words

_ROUNDING = 1e-9  # far above the rounding error of threshold * length, far below one word
_SHARED = 2  # rare words that a text must share to be compared; benchmarks/novelty.py: faster than 1 or 3


def rouge_l(a: list[str], b: list[str]) -> float:
    """Return ROUGE-L F1 of two word lists: 2 * LCS / (len(a) + len(b)); 0 when one is empty (Lin, 2004)."""
    if not a or not b:
        return 0.0
    return 2 * LCSseq.similarity(a, b) / (len(a) + len(b))


def nearest_similarity(texts: Sequence[list[str]], others: Sequence[list[str]]) -> float | None:
    """Return the mean over `texts` of the highest ROUGE-L to any of `others`, or None if either is empty."""
    if not texts or not others:
        return None
    return sum(max(rouge_l(text, other) for other in others) for text in texts) / len(texts)


class RougeIndex:
    """An index of texts (word lists) that finds the nearest by ROUGE-L without comparing with all."""

    def __init__(self, texts: Iterable[list[str]] = ()) -> None:
        self._by_length: dict[int, defaultdict[str, list[int]]] = {}  # number of words -> word -> texts
        self._texts: list[list[str]] = []
        self._frequency = Counter[str]()  # word -> number of texts with it
        for tokens in texts:
            self.add(tokens)

    def add(self, tokens: list[str]) -> None:
        """Add a text."""
        holding = self._by_length.setdefault(len(tokens), defaultdict(list))
        for word in set(tokens):
            holding[word].append(len(self._texts))
            self._frequency[word] += 1
        self._texts.append(tokens)

    def nearest(self, tokens: list[str], at_least: float) -> float | None:
        """Return the highest ROUGE-L of `tokens` to any text, or None if it is below `at_least`, in (0, 1].

        The search is exact. ROUGE-L >= t needs an LCS of c = t / 2 * (len(a) + len(b)) words, so at most len(a) - c
        words of `a` are not in `b`, and of any len(a) - c + k words of `a` at least k are. For each length of `b`, look
        up that many of the rarest words and compare only texts with k of them (the prefix filter of Bayardo et al.,
        2007, on words with repetition).
        """
        if not 0 < at_least <= 1:
            raise ValueError(f"at_least: expected a number above 0 and at most 1, got {at_least}")
        rarest_first = sorted(tokens, key=self._frequency.__getitem__)
        best = 0.0
        for length, holding in self._by_length.items():
            in_common = math.ceil(at_least / 2 * (len(tokens) + length) - _ROUNDING)
            if in_common > min(len(tokens), length):
                continue
            shared = min(_SHARED, in_common)
            looked_up = rarest_first[: len(tokens) - in_common + shared]
            hits = Counter(chain.from_iterable(holding[word] for word in looked_up if word in holding))
            for number, count in hits.items():
                if count >= shared:
                    best = max(best, rouge_l(tokens, self._texts[number]))
        return best if best >= at_least else None


class PromptFilter:
    """Accepts prompts that are well formed, wanted, and unlike everything known or accepted before.

    Args:
        known: the texts that a new prompt must not resemble, by their name in the reasons ("an evaluation prompt").
        min_words, max_words: length limits.
        max_rouge_l: drop prompts at or above this ROUGE-L to a known text (0.7 in Self-Instruct); 1 drops duplicates
            only.
        language: required ISO 639 code, None for any.
        blocked_words: words or word sequences that a prompt must not contain, in any case.
        contained: keys of `known` whose texts of five words or more must not be inside a new prompt either; ROUGE-L
            misses them in a much longer prompt.
    """

    def __init__(
        self,
        known: Mapping[str, Iterable[str]],
        *,
        min_words: int,
        max_words: int,
        max_rouge_l: float,
        language: str | None,
        blocked_words: Iterable[str],
        contained: Collection[str] = (),
    ) -> None:
        if language is not None:
            try:
                check_language(language)
            except ValueError as error:
                raise InputError(f"language: {error}") from None
        texts = {source: [words(text) for text in source_texts] for source, source_texts in known.items()}
        self._accepted = RougeIndex()
        self._sources = [(source, RougeIndex(tokens)) for source, tokens in texts.items()]
        self._sources.append(("one of this run", self._accepted))
        self._contained = {source: [_spaced(text) for text in texts[source] if len(text) >= 5] for source in contained}
        self._blocked = [_spaced(tokens) for text in blocked_words if (tokens := words(text))]
        self._limits, self._max_rouge_l, self._language = (min_words, max_words), max_rouge_l, language

    def reason_to_drop(self, text: str) -> str | None:
        """Return why `text` is dropped, or None; accepted texts count as known from then on."""
        tokens = words(text)
        reason = self._reason_by_itself(text, tokens) or self._reason_by_others(tokens)
        if reason is None:
            self._accepted.add(tokens)
        return reason

    def _reason_by_itself(self, text: str, tokens: list[str]) -> str | None:
        low, high = self._limits
        if len(tokens) < low:
            return "too short"
        if len(tokens) > high:
            return "too long"
        if len(set(tokens)) < len(tokens) / 2:
            return "repeats itself"
        if any(blocked in _spaced(tokens) for blocked in self._blocked):
            return "blocked word"
        if self._language is not None and language_of(text) not in (self._language, None):
            return "another language"
        return None

    def _reason_by_others(self, tokens: list[str]) -> str | None:
        for source, index in self._sources:
            similarity = index.nearest(tokens, self._max_rouge_l)
            if similarity is not None:
                # Only equal texts have ROUGE-L 1.
                return f"duplicate of {source}" if similarity == 1 else f"near {source}"
            if any(text in _spaced(tokens) for text in self._contained.get(source, ())):
                return f"contains {source}"
        return None


def _spaced(tokens: list[str]) -> str:
    """Return words with a space before and after each: one text contains another if its string does."""
    return f" {' '.join(tokens)} "
