"""The page of rows: a section for each data set, with histograms of its numbers."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from align.cli.page.page import Histogram, Section, write_page
from align.cli.project.units import show_size
from align.cli.show.selection import Row, Selection, is_number
from align.report.statistics import histogram

BINS = 12
MAX_HISTOGRAMS = 6


def write_row_page(path: Path, name: str, data: Mapping[str, Path], selection: Selection) -> list[str]:
    """Write a page of the selected rows of each data set; return lines that say what is in it."""
    counts: list[str] = []

    def sections() -> Iterator[Section]:
        for what, file in data.items():
            rows, count = selection.read(file)
            counts.append(f"  {count}")
            yield Section(what, rows, [count], histograms(rows))

    write_page(path, name, ", ".join(map(str, data.values())), sections())
    return [f"{path}  {show_size(path.stat().st_size)}, open it in a browser", *counts]


def histograms(rows: Sequence[Row]) -> list[Histogram]:
    """Return the distributions of the first columns with varying numbers."""
    result: list[Histogram] = []
    for column in dict.fromkeys(column for row in rows for column in row):
        values = [float(row[column]) for row in rows if is_number(row.get(column))]
        spread = max(values, default=0) - min(values, default=0)
        if len(set(values)) > 2 and 1e-300 < spread < 1e300 and len(result) < MAX_HISTOGRAMS:
            result.append(_histogram(column, values))
    return result


def _histogram(name: str, values: Sequence[float]) -> Histogram:
    low, high = min(values), max(values)
    whole = all(value.is_integer() for value in values) and high - low < BINS
    bins = int(high - low) + 1 if whole else BINS
    edges = [low + number * (1.0 if whole else (high - low) / bins) for number in range(bins + 1)]
    return Histogram(name, edges, histogram(values, edges))
