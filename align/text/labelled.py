"""Labelled texts, with the columns of mteb/tweet_sentiment_extraction, in two disjoint splits."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from align.core.errors import InputError, quoted
from align.core.rows import Row, Text, Whole, read_numbered_rows


class LabelledText(Row):
    """A text and its label, as a number and in words. Public data sets have blank texts."""

    id: Text
    text: str
    label: Whole = Field(ge=0)
    label_text: Text


def read_splits(train: Path, test: Path) -> tuple[list[LabelledText], list[LabelledText], dict[str, int]]:
    """Read the two splits; drop blank and repeated texts, and training texts that are test texts, and count them.

    Raise `InputError` if a label's number and words do not match, `test` has a label that `train` lacks, or fewer than
    two labels or no rows are left.
    """
    names: dict[int, str] = {}
    dropped = Counter[str]()
    held_out = _read(test, names, set(), "test", dropped)
    rows = _read(train, names, {_key(row) for row in held_out}, "train", dropped)
    known = {row.label for row in rows}
    if len(known) < 2:
        raise InputError(f"{train}: has {len(known)} label(s) in its {len(rows)} rows; at least two are needed")
    for row in held_out:
        if row.label not in known:
            raise InputError(f"{test}: label {row.label} of row {quoted(row.id)} is not in {train}; add rows with it")
    return rows, held_out, dict(sorted(dropped.items()))


def labels_of(rows: Sequence[LabelledText]) -> list[str]:
    """Return the labels' words, in the order of their numbers."""
    return [text for _, text in sorted({(row.label, row.label_text) for row in rows})]


def _key(row: LabelledText) -> str:
    return " ".join(row.text.lower().split())


def _read(
    path: Path, names: dict[int, str], held_out: set[str], split: str, dropped: Counter[str]
) -> list[LabelledText]:
    rows = []
    seen: dict[str, int] = {}
    for number, row in read_numbered_rows(path, LabelledText):
        other = next((label for label, text in names.items() if text == row.label_text), row.label)
        if names.setdefault(row.label, row.label_text) != row.label_text or other != row.label:
            known = f"{row.label} is {quoted(names[row.label])}" if other == row.label else f"that is {other}"
            raise InputError(f"{path}:{number}: label {row.label} says {quoted(row.label_text)}, but {known}; fix it")
        key = _key(row)
        if not key:
            dropped[f"{split}: blank text"] += 1
        elif key in held_out:
            dropped[f"{split}: its text is a test text"] += 1
        elif key in seen:
            dropped[f"{split}: repeats another text"] += 1
        else:
            seen[key] = number
            rows.append(row)
    if not rows:
        raise InputError(f"{path}: no row is left: {', '.join(f'{n} {reason}' for reason, n in dropped.items())}")
    return rows
