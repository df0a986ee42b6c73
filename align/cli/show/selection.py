"""Rows of a data set: which file it is, and which of its rows are asked for."""

import operator
import os
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from align.compare.data_sets import ARTIFACTS
from align.core.errors import InputError, quoted
from align.core.files import parse_json
from align.core.jsonl import read_objects

Row = dict[str, Any]
_CONDITION = re.compile(r"\s*([^\s=!<>~]+)\s*(==|=|!=|<=|>=|<|>|~)\s*(.*?)\s*", re.DOTALL)
_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True)
class Condition:
    """A condition on a column, such as `score>=4`; `value` is what the text means as JSON, if it is JSON."""

    column: str
    operator: str
    text: str
    value: Any

    @classmethod
    def parse(cls, condition: str) -> "Condition":
        """Parse `COLUMN OPERATOR VALUE`.

        Raises:
            InputError: it has not this form, or asks for an order of what is no number.
        """
        match = _CONDITION.fullmatch(condition)
        if match is None:
            raise InputError(
                f"--where {quoted(condition)}: no condition; write a column, one of = != < <= > >= ~ and a value, "
                "such as 'score>=4', 'iteration=m1' or 'prompt~garden'"
            )
        column, sign, text = match.groups()
        try:
            value = parse_json(text)
        except ValueError:
            value = text
        if sign in _ORDER and not is_number(value):
            raise InputError(f"--where {quoted(condition)}: {quoted(text)} is no number, and {sign} compares numbers")
        return cls(column, "=" if sign == "==" else sign, text, value)

    def holds(self, row: Row) -> bool:
        """Tell whether a row meets it; a row without the column has null there, and null is in no order."""
        cell = row.get(self.column)
        if self.operator == "~":
            return contains(cell, self.text)
        if self.operator in _ORDER:
            return is_number(cell) and _ORDER[self.operator](cell, self.value)
        return self._equals(cell) == (self.operator == "=")

    def _equals(self, cell: Any) -> bool:
        if isinstance(cell, str):
            return cell in (self.text, self.value)
        return bool(cell == self.value) and isinstance(cell, bool) == isinstance(self.value, bool)


@dataclass(frozen=True)
class Selection:
    """Which rows of a data set, and in which order."""

    conditions: Sequence[Condition] = ()
    grep: str | None = None  # a text that some value of the row contains
    sample: int | None = None  # the seed of a draw of `limit` rows; None: the first
    sort: str | None = None  # a column
    descending: bool = False
    limit: int | None = None

    def of(self, rows: Sequence[Row]) -> tuple[list[Row], int]:
        """Return the rows asked for, and how many met the conditions.

        Raises:
            InputError: no row has a column that is asked for, or none a number where numbers are compared.
        """
        self._check(rows)
        found = [
            row
            for row in rows
            if all(condition.holds(row) for condition in self.conditions)
            and (self.grep is None or contains(row, self.grep))
        ]
        count = len(found)
        if self.sample is not None and self.limit is not None and self.limit < count:
            drawn = random.Random(self.sample).sample(range(count), self.limit)
            found = [found[number] for number in sorted(drawn)]
        if self.sort is not None:
            found = _sorted(found, self.sort, self.descending)
        return found[: self.limit], count

    def _check(self, rows: Sequence[Row]) -> None:
        columns = list(dict.fromkeys(column for row in rows for column in row))
        for column in [condition.column for condition in self.conditions] + ([self.sort] if self.sort else []):
            if rows and column not in columns:
                raise InputError(f"no row has the column {quoted(column)}; columns: {', '.join(columns)}")
        for condition in self.conditions:
            if condition.operator in _ORDER and rows and not any(is_number(row.get(condition.column)) for row in rows):
                raise InputError(
                    f"column {quoted(condition.column)} holds no number, and {condition.operator} compares numbers; "
                    "= compares texts, ~ looks for a text within"
                )


def find_data(name: str, what: str | None) -> dict[str, Path]:
    """Return the files of the data sets that are meant, by name: of a file itself, of a model all that are here.

    Raises:
        InputError: a file and a data set of a model are asked for at once, or there is nothing.
    """
    if what is not None and os.path.isfile(name):
        raise InputError(f"{name} is a file; --what names a data set of a model")
    path = PurePath(name)
    if os.path.isfile(name) or (path.name != name and path.parent.name != "models"):
        return {path.name: Path(name)}
    model = path.name
    if what is not None:
        return {what: Path(ARTIFACTS[what][0].format(model))}
    paths = {key: Path(pattern.format(model)) for key, (pattern, _) in ARTIFACTS.items()}
    found = {key: path for key, path in paths.items() if path.is_file()}
    if not found:
        raise InputError(
            f"{quoted(name)}: no such file, and no data set of a model of this name is here; "
            "run `dvc repro` or `dvc pull`"
        )
    return found


def read_data(path: Path) -> list[Row]:
    """Read the rows of a JSONL file.

    Raises:
        InputError: it cannot be read, or a line is no JSON object.
    """
    return [row for _, row in read_objects(path)]


def count_rows(path: Path, shown: int, found: int, total: int) -> str:
    """Return in words how many rows of a file are shown, and how many met the conditions."""
    if shown == total:
        return f"{path}: {total} rows"
    if found == 0:
        return f"{path}: no row passes, {total} in all"
    of = f"{found} rows" if found == total else f"the {found} rows that pass, {total} in all"
    return f"{path}: {shown} of {of}"


def is_number(value: Any) -> bool:
    """Tell whether a JSON value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def contains(value: Any, text: str) -> bool:
    """Tell whether a text stands in a JSON value, at whatever depth; small and capital letters are the same."""
    wanted = text.casefold()
    return any(wanted in found.casefold() for found in _texts(value))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
    elif value is not None:
        yield value if isinstance(value, str) else str(value)


def _sorted(rows: list[Row], column: str, descending: bool) -> list[Row]:
    """Sort by a column, rows alike in their order; numbers before texts, rows without a value last either way."""
    with_value = [row for row in rows if row.get(column) is not None]
    without = [row for row in rows if row.get(column) is None]

    def key(row: Row) -> tuple[bool, Any]:
        value = row[column]
        return (False, value) if is_number(value) else (True, value if isinstance(value, str) else str(value))

    return sorted(with_value, key=key, reverse=descending) + without
