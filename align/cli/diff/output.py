"""The data sets that `align diff` compares, and the forms in which it writes what it finds."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from align.cli.diff.report import facts, report
from align.cli.diff.sides import Side, Sources, data_sets
from align.cli.page.page import Histogram, Section, write_page
from align.compare.join import KINDS, Diff, Kind, compare
from align.core.errors import InputError, printable
from align.core.files import replacing

FEW = 3  # rows of each kind that a terminal shows of one data set


@dataclass
class Comparison:
    """What is asked for.

    Once the output is written, `same` tells whether all data sets were the same, `failed` whether one is out of reach.
    """

    sources: Sources
    a: Side
    b: Side
    what: str | None = None
    key: Sequence[str] = ()
    kinds: Sequence[Kind] = KINDS
    limit: int | None = None
    tolerance: float = 0.0
    same: bool = True
    failed: bool = False

    def data_sets(self) -> Iterator[tuple[str, Diff, int]]:
        """Yield name, outcome and the number of data sets; an outcome is read before the next is asked for."""
        found = data_sets(self.sources, self.a, self.b, self.what)
        for name, (path_a, path_b, key) in found.items():
            try:
                files = self.sources.file(self.a, path_a), self.sources.file(self.b, path_b)
            except InputError as error:
                if len(found) == 1:
                    raise
                # The others can still be compared, such as those of a run that is under way.
                self.failed = True
                click.echo(f"{name}: not compared: {error.message}", err=True)
                continue
            with compare(*files, self.key or key, self.tolerance) as diff:
                self.same &= diff.same
                yield name, diff, len(found)

    def table(self) -> Iterator[str]:
        """Yield lines for people."""
        for name, diff, number in self.data_sets():
            limit = (FEW if number == 1 else 0) if self.limit is None else self.limit
            yield from report(name, diff, self.a.text, self.b.text, self.kinds, limit)

    def json(self) -> Iterator[str]:
        """Yield one line: an object with the counts of each data set, and with a limit its rows."""
        sets = {name: diff.as_dict(self.limit or 0, self.kinds) for name, diff, _ in self.data_sets()}
        yield _line({"a": self.a.text, "b": self.b.text, "same": self.same, "data_sets": sets})

    def jsonl(self) -> Iterator[str]:
        """Yield an object for each row that differs."""
        for name, diff, _ in self.data_sets():
            for change in diff.changes(self.kinds, self.limit):
                yield _line({"data_set": name, **change._asdict()})

    def write_html(self, path: Path) -> None:
        """Write a page to browse in."""
        write_page(path, f"{self.a.text} → {self.b.text}", "align diff", self._sections())

    def _sections(self) -> Iterator[Section]:
        for name, diff, _ in self.data_sets():
            histograms = [
                Histogram(column, number.edges, number.a.histogram, number.b.histogram)
                for column, number in diff.numbers.items()
                if len(number.edges) > 2
            ]
            yield Section(
                name,
                diff.changes(self.kinds, self.limit),
                list(facts(name, diff, self.a.text, self.b.text)),
                histograms,
                (self.a.text, self.b.text),
            )


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines to a file, whole or not at all."""
    try:
        with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
            stream.writelines(f"{line}\n" for line in lines)
    except OSError as error:
        raise InputError(f"{path}: cannot write ({error.strerror}); name another file") from None


def _line(value: Any) -> str:
    return printable(json.dumps(value, ensure_ascii=False, default=dict))
