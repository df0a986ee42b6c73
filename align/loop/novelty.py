"""New prompts that are new: ROUGE-L between texts, exact search by it, and a filter with a reason for each drop."""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain

import py3langid
from py3langid.langid import RAW_FLOOR
from rapidfuzz.distance import LCSseq

from align.core.errors import InputError
from align.report.statistics import words

_ROUNDING = 1e-9  # far above the error of a float product of a threshold and lengths, far below one word
_SHARED = 2  # rare words that a text must share to be compared: faster than 1 or 3 by benchmarks/novelty.py


def rouge_l(a: list[str], b: list[str]) -> float:
    """Return ROUGE-L F1 of two word lists: 2 * LCS / (len(a) + len(b)); 0 when one is empty (Lin, 2004)."""
    if not a or not b:
        return 0.0
    return 2 * LCSseq.similarity(a, b) / (len(a) + len(b))


def nearest_similarity(texts: Sequence[list[str]], others: Sequence[list[str]]) -> float | None:
    """Return the mean over `texts` of the highest ROUGE-L to any of `others`, None of nothing; quadratic."""
    if not texts or not others:
        return None
    return sum(max(rouge_l(text, other) for other in others) for text in texts) / len(texts)


def language_of(text: str) -> str | None:
    """Return the ISO 639 code of a text's language as py3langid sees it; None when it has none, such as `12 * 12`."""
    language, log_probability = py3langid.classify(text)
    # Without any feature every language scores the floor and the first in the alphabet wins; zxx is "no language".
    return None if log_probability <= RAW_FLOOR or language == "zxx" else str(language)


class RougeIndex:
    """Texts, as word lists, in which those near another text by ROUGE-L are found without comparing with all.

    Args:
        texts: the first texts of the index.
    """

    def __init__(self, texts: Iterable[list[str]] = ()) -> None:
        self._by_length: dict[int, defaultdict[str, list[int]]] = {}  # number of words -> word -> texts
        self._texts: list[list[str]] = []
        self._frequency = Counter[str]()  # word -> number of texts that hold it
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
        """Return the highest ROUGE-L of `tokens` to any text, or None if it is below `at_least`, which is in (0, 1].

        The answer is that of comparing with every text. ROUGE-L >= t takes an LCS of c = t / 2 * (len(a) + len(b))
        words. Whichever c words of `a` those are, at most len(a) - c of its words are not in `b`: of any
        len(a) - c + k words of `a`, at least k are. So the rarest that many are looked up, for each length of `b`, and
        only texts with k of them are compared (the prefix filter of Bayardo et al., 2007, on words with repetition).
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


class _Sequences:
    """Word sequences that are found inside texts by their first `opening` words; shorter ones are left out."""

    def __init__(self, sequences: Iterable[list[str]], opening: int) -> None:
        self._opening = opening
        self._by_opening = defaultdict[tuple[str, ...], list[list[str]]](list)
        for sequence in sequences:
            if len(sequence) >= opening:
                self._by_opening[tuple(sequence[:opening])].append(sequence)

    def occur_in(self, tokens: list[str]) -> bool:
        """Whether any of the sequences is in `tokens`, without a gap."""
        return any(
            tokens[start : start + len(sequence)] == sequence
            for start in range(len(tokens) - self._opening + 1)
            for sequence in self._by_opening.get(tuple(tokens[start : start + self._opening]), ())
        )


class PromptFilter:
    """Accepts a prompt when it is well formed, wanted, and unlike everything known or accepted before.

    Args:
        known: the texts that a new prompt must not resemble, by what the reasons call one ("an evaluation prompt").
        min_words, max_words: length limits.
        max_rouge_l: a prompt at or above this ROUGE-L to any known text is not new (Self-Instruct uses 0.7); at 1 only
            duplicates are dropped.
        language: ISO 639 code of the language that prompts must be in, None for any.
        blocked_words: words, or sequences of words, that a prompt must not hold, as whole words in any case.
        contained: the keys of `known` whose texts of five words or more must not be inside a new prompt either, which
            ROUGE-L does not see when the prompt is much longer.
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
        if language is not None and language not in dict(py3langid.rank("")):
            raise InputError(f'language: py3langid knows no {language!r}; write an ISO 639 code such as "en"')
        texts = {source: [words(text) for text in source_texts] for source, source_texts in known.items()}
        self._accepted = RougeIndex()
        self._sources = [(source, RougeIndex(tokens)) for source, tokens in texts.items()]
        self._sources.append(("one of this run", self._accepted))
        self._contained = {source: _Sequences(texts[source], opening=5) for source in contained}
        self._blocked = _Sequences(map(words, blocked_words), opening=1)
        self._limits, self._max_rouge_l, self._language = (min_words, max_words), max_rouge_l, language

    def reason_to_drop(self, text: str) -> str | None:
        """Return why `text` is not accepted, or None; what is accepted is known from then on."""
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
        if self._blocked.occur_in(tokens):
            return "blocked word"
        if self._language is not None and language_of(text) not in (self._language, None):
            return "another language"
        return None

    def _reason_by_others(self, tokens: list[str]) -> str | None:
        for source, index in self._sources:
            similarity = index.nearest(tokens, self._max_rouge_l)
            if similarity is not None:
                # ROUGE-L is 1 of equal texts alone.
                return f"duplicate of {source}" if similarity == 1 else f"near {source}"
            if source in self._contained and self._contained[source].occur_in(tokens):
                return f"contains {source}"
        return None
