"""Rows of a data set: which files hold them, and which rows are selected."""

import operator
import os
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Self

from align.compare.data_sets import ARTIFACTS
from align.core.errors import InputError, quoted
from align.core.files import parse_json
from align.core.jsonl import read_objects

Row = dict[str, Any]
_CONDITION = re.compile(r"\s*([^\s=!<>~]+)\s*(==|=|!=|<=|>=|<|>|~)\s*(.*?)\s*", re.DOTALL)
_ORDER: dict[str, Any] = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


@dataclass(frozen=True)
class Condition:
    """A condition on a column, such as `score>=4`; `value` is the text parsed as JSON where it is JSON."""

    column: str
    operator: str
    text: str
    value: Any

    @classmethod
    def parse(cls, condition: str) -> Self:
        """Parse `COLUMN OPERATOR VALUE`."""
        match = _CONDITION.fullmatch(condition)
        if match is None:
            raise InputError(
                f"--where {quoted(condition)}: not a condition; write a column, one of = != < <= > >= ~ and a value, "
                "such as 'score>=4', 'iteration=m1' or 'prompt~garden'"
            )
        column, sign, text = match.groups()
        try:
            value = parse_json(text)
        except ValueError:
            value = text
        if sign in _ORDER and not is_number(value):
            raise InputError(f"--where {quoted(condition)}: {sign} compares numbers, and {quoted(text)} is not one")
        return cls(column, "=" if sign == "==" else sign, text, value)

    def holds(self, row: Row) -> bool:
        """Return whether a row meets the condition; a row without the column has null there."""
        cell = row.get(self.column)
        if self.operator == "~":
            return _contains(cell, self.text)
        if self.operator in _ORDER:
            return is_number(cell) and bool(_ORDER[self.operator](cell, self.value))
        if isinstance(cell, str):
            equal = cell in (self.text, self.value)
        else:
            equal = cell == self.value and isinstance(cell, bool) == isinstance(self.value, bool)
        return equal == (self.operator == "=")


@dataclass(frozen=True)
class Selection:
    """Which rows of a data set, and in which order."""

    conditions: Sequence[Condition] = ()
    grep: str | None = None  # text to find in any value
    sample: int | None = None  # seed for drawing `limit` rows; None: the first ones
    sort: str | None = None  # a column
    descending: bool = False
    limit: int | None = None

    def read(self, path: Path) -> tuple[list[Row], str]:
        """Return the selected rows of a JSONL file, and a sentence that counts them."""
        everything = [row for _, row in read_objects(path)]
        self._check_columns(everything)
        matching = [row for row in everything if all(condition.holds(row) for condition in self.conditions)]
        if self.grep is not None:
            matching = [row for row in matching if _contains(row, self.grep)]
        rows = matching
        if self.sample is not None and self.limit is not None and self.limit < len(matching):
            drawn = random.Random(self.sample).sample(range(len(matching)), self.limit)
            rows = [matching[number] for number in sorted(drawn)]
        if self.sort is not None:
            rows = _sorted(rows, self.sort, self.descending)
        rows = rows[: self.limit]
        return rows, f"{path}: {_count(len(rows), len(matching), len(everything))}"

    def _check_columns(self, rows: Sequence[Row]) -> None:
        columns = list(dict.fromkeys(column for row in rows for column in row))
        for column in [condition.column for condition in self.conditions] + ([self.sort] if self.sort else []):
            if rows and column not in columns:
                raise InputError(f"no row has the column {quoted(column)}; columns: {', '.join(columns)}")
        for condition in self.conditions:
            if condition.operator in _ORDER and rows and not any(is_number(row.get(condition.column)) for row in rows):
                raise InputError(
                    f"column {quoted(condition.column)} has no numbers, and {condition.operator} compares numbers; "
                    "use = for equal text, ~ for text that contains the value"
                )


def find_data(name: str, what: str | None) -> dict[str, Path]:
    """Return the files that are meant, by data set: a file itself, or all data sets of a model that are here."""
    if what is not None and os.path.isfile(name):
        raise InputError(f"{name} is a file; --what names a data set of a model")
    path = PurePath(name)
    if os.path.isfile(name) or (path.name != name and path.parent.name != "models"):
        return {path.name: Path(name)}
    paths = {key: Path(pattern.format(path.name)) for key, (pattern, _) in ARTIFACTS.items()}
    if what is not None:
        return {what: paths[what]}
    present = {key: path for key, path in paths.items() if path.is_file()}
    if not present:
        raise InputError(f"{quoted(name)}: not a file, nor a model with data here; run `dvc repro` or `dvc pull`")
    return present


def is_number(value: Any) -> bool:
    """Return whether a JSON value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _contains(value: Any, text: str) -> bool:
    """Return whether a JSON value contains a text, at any depth and in any case."""
    wanted = text.casefold()
    return any(wanted in leaf.casefold() for leaf in _leaves(value))


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)
    elif value is not None:
        yield str(value)


def _sorted(rows: list[Row], column: str, descending: bool) -> list[Row]:
    """Sort stably: numbers before texts, and rows without a value last in both directions."""
    without = [row for row in rows if row.get(column) is None]
    rest = [row for row in rows if row.get(column) is not None]

    def place(row: Row) -> tuple[bool, Any]:
        return (False, row[column]) if is_number(row[column]) else (True, str(row[column]))

    return sorted(rest, key=place, reverse=descending) + without


def _count(shown: int, matching: int, total: int) -> str:
    if shown == total:
        return f"{total} rows"
    if matching == total:
        return f"{shown} of {total} rows"
    return f"{shown} of {matching} matching rows, {total} in all" if matching else f"none of {total} rows matches"
