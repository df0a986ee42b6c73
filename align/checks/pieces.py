"""What the checks count in a text: words, sentences, lines, list items; and where a phrase is in it."""

import re
import unicodedata

_BULLETS = "*+\u2022\u2013-"  # the last three: bullet, en dash, hyphen
_LIST_MARKER = re.compile(rf"\s*(?:[{_BULLETS}]|\d{{1,3}}[.)])\s+")
_BULLET = re.compile(rf"\s*[{_BULLETS}]\s+\S")
_NUMBERED = re.compile(r"\s*\d{1,3}[.)]\s+\S")
_WORD_CHARACTER = r"[^\W_]"
# A sentence ends at a mark, and what closes with it, before a space or the line's end; CJK marks need no space.
_SENTENCE_END = re.compile(r"[.!?\u2026]+[\"')\]*_]*(?=\s|$)|[\u3002\uff01\uff1f]+")
_ABBREVIATIONS = {"mr.", "mrs.", "ms.", "dr.", "prof.", "st.", "mt.", "jr.", "sr.", "vs.", "etc.", "approx.", "ca."}
_INITIALS = re.compile(r"(?:[^\W\d_]\.)+")  # J. or U.S. or p.m.
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_TRAILING_ZEROS = re.compile(r"(?<=\d)\.0+(?!\d)|(\.\d*[1-9])0+(?!\d)")
_ARTICLE = re.compile(r"(?:the|an|a) ")
_AROUND_AN_ANSWER = " \n\t.,;:!?\"'`*_()[]{}"


def normalised(text: str) -> str:
    """Return the text with line ends as `\\n`, composed characters (NFC) and straight quotes."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return unicodedata.normalize("NFC", lines).translate({0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"'})


def lines(text: str) -> list[str]:
    """Return the lines that are not blank."""
    return [line for line in text.split("\n") if line.strip()]


def words(text: str) -> list[str]:
    """Return what white space separates, if it has a letter or digit: "don't" and "well-known" are one word each."""
    pieces = (word for line in lines(text) for word in _LIST_MARKER.sub("", line, count=1).split())
    return [word for word in pieces if _has_word(word)]


def sentences(text: str) -> list[str]:
    """Return the sentences.

    The end of a line ends one; the points of common abbreviations, initials and decimal numbers do not.
    """
    found = []
    for line in lines(text):
        rest = _LIST_MARKER.sub("", line, count=1)
        start = 0
        for match in _SENTENCE_END.finditer(rest):
            last_word = rest[start : match.end()].split()[-1].lstrip("(\"'*_").lower()
            if last_word not in _ABBREVIATIONS and not _INITIALS.fullmatch(last_word):
                found.append(rest[start : match.end()])
                start = match.end()
        found.append(rest[start:])
    return [sentence.strip() for sentence in found if _has_word(sentence)]


def list_items(text: str, numbered: bool) -> list[str]:
    """Return the lines that start with a bullet (`-`, `*`, `+`, dot, dash), or with a number as in `1.` or `1)`."""
    marker = _NUMBERED if numbered else _BULLET
    return [line for line in lines(text) if marker.match(line)]


def comma_items(text: str) -> list[str]:
    """Return the parts of a comma-separated list, also those that a last "and" or "or" separates."""
    parts = re.split(r",\s*(?:and\s+|or\s+)?|\s+(?:and|or)\s+", text)
    return [part for part in parts if _has_word(part)]


def occurrences(phrase: str, text: str) -> int:
    """Return how often whole words are in a text, in any case; `tree` is not in `trees`."""
    return len(_phrase(phrase).findall(text))


def starts_with(phrase: str, text: str) -> bool:
    """Return whether a text starts with these whole words, in any case."""
    return _phrase(phrase).match(text.lstrip()) is not None


def ends_with(phrase: str, text: str) -> bool:
    """Return whether a text ends with these whole words, in any case.

    Marks after the words do not count, unless the phrase ends with a mark itself.
    """
    text = text.rstrip()
    if phrase.rstrip()[-1].isalnum():
        text = re.sub(r"[\W_]+$", "", text)
    return any(match.end() == len(text) for match in _phrase(phrase).finditer(text))


def answer_of(text: str) -> str:
    """Return a short answer in the form in which two are compared.

    That is lower case, without marks around it, an article before it, thousands separators and zeros after the decimal
    point: "The 1,200.0." is "1200".
    """
    bare = " ".join(text.casefold().split()).strip(_AROUND_AN_ANSWER)
    bare = _ARTICLE.sub("", bare, count=1) if _ARTICLE.match(bare) else bare
    return _TRAILING_ZEROS.sub(r"\1", _THOUSANDS.sub("", bare))


def _phrase(phrase: str) -> re.Pattern[str]:
    phrase = " ".join(normalised(phrase).split())
    inner = r"\s+".join(map(re.escape, phrase.split(" ")))
    before = f"(?<!{_WORD_CHARACTER})" if phrase[0].isalnum() else ""
    after = f"(?!{_WORD_CHARACTER})" if phrase[-1].isalnum() else ""
    return re.compile(before + inner + after, re.IGNORECASE)


def _has_word(text: str) -> bool:
    return any(character.isalnum() for character in text)
