"""The page of rows: a section for each data set, with the distribution of its numbers."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from align.cli.page.page import Histogram, Section, write_page
from align.cli.project.units import show_size
from align.cli.show.selection import Row, Selection, count_rows, is_number, read_data

BINS = 12
MAX_HISTOGRAMS = 6


def write_row_page(path: Path, name: str, data: Mapping[str, Path], selection: Selection) -> list[str]:
    """Write the page of the rows asked for of each data set; return what to tell of it.

    Raises:
        InputError: a file cannot be read or the page not written, or no row has a column that is asked for.
    """
    told: list[str] = []

    def sections() -> Iterator[Section]:
        for what, file in data.items():
            everything = read_data(file)
            rows, found = selection.of(everything)
            fact = count_rows(file, len(rows), found, len(everything))
            told.append(f"  {fact}")
            yield Section(what, rows, [fact], histograms(rows))

    write_page(path, name, ", ".join(map(str, data.values())), sections())
    return [f"{path}  {show_size(path.stat().st_size)}, open it in a browser", *told]


def histograms(rows: Sequence[Row]) -> list[Histogram]:
    """Return the distributions of the first columns whose numbers differ."""
    found: list[Histogram] = []
    for column in dict.fromkeys(column for row in rows for column in row):
        values = [float(row[column]) for row in rows if is_number(row.get(column))]
        spread = max(values, default=0) - min(values, default=0)
        if len(set(values)) > 2 and 1e-300 < spread < 1e300 and len(found) < MAX_HISTOGRAMS:
            found.append(_histogram(column, values))
    return found


def _histogram(name: str, values: Sequence[float]) -> Histogram:
    low, high = min(values), max(values)
    whole = all(value.is_integer() for value in values) and high - low < BINS
    bins = int(high - low) + 1 if whole else BINS
    width = 1.0 if whole else (high - low) / bins
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, int((value - low) / width))] += 1
    return Histogram(name, [low + number * width for number in range(bins + 1)], counts)
