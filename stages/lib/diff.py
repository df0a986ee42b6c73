"""What changed between two data sets: a full outer join of their rows by key. Computing only; the CLI shows it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.lib.errors import quoted

Key = tuple[Any, ...]
JsonRow = Mapping[str, Any]


@dataclass(frozen=True)
class NumericColumn:
    """A number column on both sides: means over all rows that have a number, and wins over the rows in common."""

    mean_a: float | None
    mean_b: float | None
    higher: int  # rows in common where B has the higher number
    lower: int
    equal: int


@dataclass(frozen=True)
class Diff:
    """The outcome of `diff_rows`; B is the new side."""

    rows_a: int
    rows_b: int
    added: list[JsonRow]
    removed: list[JsonRow]
    changed: list[tuple[JsonRow, JsonRow]]
    unchanged: int
    changed_columns: dict[str, int]
    numbers: dict[str, NumericColumn]
    columns_added: list[str]
    columns_removed: list[str]

    @property
    def same(self) -> bool:
        """Whether both sides hold the same rows."""
        return not (self.added or self.removed or self.changed or self.columns_added or self.columns_removed)


def diff_rows(a: Sequence[JsonRow], b: Sequence[JsonRow], key: Sequence[str]) -> Diff:
    """Join two data sets by `key` and tell added, removed, changed and unchanged rows apart.

    Raises:
        ValueError: a row lacks a key column, or two rows of one side have the same key.
    """
    left, right = _index(a, key, "A"), _index(b, key, "B")
    common = [(left[k], right[k]) for k in left if k in right]
    changed = [(old, new) for old, new in common if old != new]
    columns_a = list(dict.fromkeys(column for row in a for column in row))
    columns_b = list(dict.fromkeys(column for row in b for column in row))
    shared = [column for column in columns_a if column in columns_b]
    numbers = {
        column: _compare_numbers([row.get(column) for row in a], [row.get(column) for row in b], common, column)
        for column in shared
        if column not in key and any(_is_number(row.get(column)) for row in (*a, *b))
    }
    return Diff(
        rows_a=len(a),
        rows_b=len(b),
        added=[row for k, row in right.items() if k not in left],
        removed=[row for k, row in left.items() if k not in right],
        changed=changed,
        unchanged=len(common) - len(changed),
        changed_columns={
            column: count
            for column in shared
            if (count := sum(old.get(column) != new.get(column) for old, new in changed))
        },
        numbers=numbers,
        columns_added=[column for column in columns_b if column not in columns_a] if a else [],
        columns_removed=[column for column in columns_a if column not in columns_b] if b else [],
    )


def _index(rows: Sequence[JsonRow], key: Sequence[str], side: str) -> dict[Key, JsonRow]:
    index: dict[Key, JsonRow] = {}
    for number, row in enumerate(rows, 1):
        try:
            value = tuple(row[column] for column in key)
            hash(value)
        except KeyError as error:
            raise ValueError(
                f"row {number} of side {side} has no key column {error}; name columns of all rows"
            ) from None
        except TypeError:
            raise ValueError(
                f"row {number} of side {side} has a list or an object as its key; name other key columns"
            ) from None
        if value in index:
            raise ValueError(
                f"row {number} of side {side} has the key {quoted(value)} of an earlier row; name more key columns"
            )
        index[value] = row
    return index


def _compare_numbers(a: list[Any], b: list[Any], common: list[tuple[JsonRow, JsonRow]], column: str) -> NumericColumn:
    both = [
        (old[column], new[column]) for old, new in common if _is_number(old.get(column)) and _is_number(new.get(column))
    ]
    return NumericColumn(
        mean_a=_mean([value for value in a if _is_number(value)]),
        mean_b=_mean([value for value in b if _is_number(value)]),
        higher=sum(new > old for old, new in both),
        lower=sum(new < old for old, new in both),
        equal=sum(new == old for old, new in both),
    )


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _is_number(value: Any) -> bool:
    # No mean can be told of numbers whose sum a float does not hold.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
