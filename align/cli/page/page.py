"""One HTML file to browse rows or changed rows in: no network, no server, and data are never code.

Rows are embedded as JSON, which the page's script shows as text. The Content-Security-Policy allows only this script
and this style sheet, by hash, and no requests.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from align.compare.changes import RowChange
from align.core.errors import InputError, printable
from align.core.files import replacing
from align.core.templates import source_hash

HERE = Path(__file__).parent
CHUNK_SIZE = 1_000_000  # characters of JSON in one element, so that neither side holds all rows in one string
SAFE_INTEGER = 2**53 - 1  # a browser's numbers are doubles
_MANY_DIGITS = re.compile(r"\d{16}")


@dataclass(frozen=True)
class Histogram:
    """Counts of a number between neighbouring `edges`, on side A and, in a comparison, on side B."""

    name: str
    edges: Sequence[float]
    a: Sequence[int]
    b: Sequence[int] | None = None


@dataclass(frozen=True)
class Section:
    """A data set. If it has `sides`, the names of A and B, its rows are changes."""

    name: str
    rows: Iterable[Mapping[str, Any] | RowChange]
    facts: Sequence[str] = ()  # lines above the table
    histograms: Sequence[Histogram] = ()
    sides: tuple[str, str] | None = None


def write_page(path: Path, title: str, subtitle: str, sections: Iterable[Section]) -> None:
    """Write the page, whole or not at all; sections and rows are read one at a time."""
    environment = Environment(
        loader=FileSystemLoader(HERE), undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["printable"] = printable
    script, style = ((HERE / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    pieces = environment.get_template("page.html.jinja").generate(
        title=printable(title),
        subtitle=printable(subtitle),
        sections=sections,
        about=_about,
        chunks=_chunks,
        script=Markup(script),
        script_hash=source_hash(script),
        style=Markup(style),
        style_hash=source_hash(style),
    )
    try:
        with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as stream:
            stream.writelines(pieces)
    except OSError as error:
        raise InputError(f"{path}: cannot write ({error.strerror}); name another file") from None


def _about(section: Section) -> Markup:
    histograms = [asdict(histogram) for histogram in section.histograms]
    return _script_json({"name": section.name, "sides": section.sides, "histograms": histograms})


def _chunks(rows: Iterable[Mapping[str, Any] | RowChange]) -> Iterator[Markup]:
    """Yield JSON arrays of rows, each of about `CHUNK_SIZE`."""
    texts: list[Markup] = []
    size = 0
    for row in rows:
        texts.append(_script_json(row))
        size += len(texts[-1])
        if size >= CHUNK_SIZE:
            yield Markup("[" + ",\n".join(texts) + "]")
            texts, size = [], 0
    if texts:
        yield Markup("[" + ",\n".join(texts) + "]")


def _script_json(value: Any) -> Markup:
    """Return JSON without characters that mean something in HTML or that cannot be seen."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=dict)
    if _MANY_DIGITS.search(text):
        text = json.dumps(_exact(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text = printable(text)  # as JSON escapes
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _exact(value: Any) -> Any:
    """Return `value` with integers that a browser would round as text."""
    if isinstance(value, Mapping):
        return {key: _exact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_exact(item) for item in value]
    return str(value) if isinstance(value, int) and abs(value) > SAFE_INTEGER else value
