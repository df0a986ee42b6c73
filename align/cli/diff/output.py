"""The forms in which `align diff` writes the differences of each data set."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import click

from align.cli.diff.report import report, summary
from align.cli.diff.sides import Side, Sources, data_sets
from align.cli.page.page import Histogram, Section
from align.compare.changes import Kind
from align.compare.join import Diff, compare
from align.core.errors import InputError, printable

FEW = 3  # rows of each kind in a table of one data set


@dataclass
class Comparison:
    """Two sides and what to compare. `same` and `failed` are the outcome, once the output has been read."""

    sources: Sources
    a: Side
    b: Side
    what: str | None
    key: Sequence[str]
    kinds: Sequence[Kind]
    limit: int | None
    tolerance: float
    same: bool = True
    failed: bool = False  # a data set is out of reach

    def __post_init__(self) -> None:
        self.data_sets = data_sets(self.sources, self.a, self.b, self.what)

    def diffs(self) -> Iterator[tuple[str, Diff]]:
        """Yield each data set's name and differences, which must be read before the next ones."""
        for name, (path_a, path_b, key) in self.data_sets.items():
            try:
                files = self.sources.file(self.a, path_a), self.sources.file(self.b, path_b)
            except InputError as error:
                if len(self.data_sets) == 1:
                    raise
                # Compare the others, such as those of an unfinished run.
                self.failed = True
                click.echo(f"{name}: not compared: {error.message}", err=True)
                continue
            with compare(*files, self.key or key, self.tolerance) as diff:
                self.same &= diff.same
                yield name, diff

    def table(self) -> Iterator[str]:
        """Yield lines for people."""
        default = FEW if len(self.data_sets) == 1 else 0
        for name, diff in self.diffs():
            limit = default if self.limit is None else self.limit
            yield from report(name, diff, self.a.text, self.b.text, self.kinds, limit)

    def json(self) -> Iterator[str]:
        """Yield one line: an object with the counts of each data set and, with a limit, its rows."""
        sets = {name: diff.as_dict(self.limit or 0, self.kinds) for name, diff in self.diffs()}
        yield _line({"a": self.a.text, "b": self.b.text, "same": self.same, "data_sets": sets})

    def jsonl(self) -> Iterator[str]:
        """Yield an object for each row that differs."""
        for name, diff in self.diffs():
            for change in diff.changes(self.kinds, self.limit):
                yield _line({"data_set": name, **change._asdict()})

    def sections(self) -> Iterator[Section]:
        """Yield each data set for a page."""
        sides = self.a.text, self.b.text
        for name, diff in self.diffs():
            facts = [click.unstyle(line).strip() for line in summary(name, diff, *sides, bars=False)]
            histograms = [
                Histogram(column, number.edges, number.a.histogram, number.b.histogram)
                for column, number in diff.numbers.items()
                if len(number.edges) > 2
            ]
            yield Section(name, diff.changes(self.kinds, self.limit), facts, histograms, sides)


def _line(value: Any) -> str:
    return printable(json.dumps(value, ensure_ascii=False, default=dict))
