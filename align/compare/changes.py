"""What a comparison of two data sets finds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Kind = Literal["added", "removed", "changed"]
KINDS: tuple[Kind, ...] = ("added", "removed", "changed")


class RowChange(NamedTuple):
    """A row that differs; None on a side that lacks it."""

    kind: Kind
    a: Mapping[str, Any] | None
    b: Mapping[str, Any] | None


@dataclass(frozen=True)
class Side:
    """A number column on one side, over its rows that have a number."""

    count: int
    mean: float | None
    quantiles: list[float]  # minimum, quartiles, maximum; empty without numbers
    histogram: list[int]  # rows in each of `NumberColumn.edges`' bins


@dataclass(frozen=True)
class NumberColumn:
    """A number column of both sides."""

    a: Side
    b: Side
    edges: list[float]  # of equal bins over both sides
    higher: int  # common rows where B has the higher number
    lower: int
    equal: int  # within the tolerance
    mean_difference: float | None  # B - A over the common rows


@dataclass(frozen=True)
class Preferences:
    """Changes of the common preference pairs."""

    swapped: int  # chosen and rejected have swapped
    new_chosen: int  # another chosen reply, and no swap
    new_rejected: int


@dataclass(frozen=True)
class Duplicates:
    """Keys that occur more than once on a side; their rows are matched in order."""

    keys: int = 0
    rows: int = 0
    examples: list[list[Any]] = field(default_factory=list)
