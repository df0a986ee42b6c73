"""Read the rows of one file of JSON, CSV or Parquet, as they are.

Library `datasets` would turn JSON texts that look like dates into dates, 1 into 1.0 and 0042 into 42, and it refuses a
table for the type of a column that nobody wants.
"""

import csv
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import IO, Any

import fsspec
from pyarrow.parquet import ParquetFile

from align.core.errors import InputError, quoted
from align.core.files import parse_json
from align.core.jsonl import parse_lines

BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class TableFile:
    """A file and how to read it: `name` and `section` (of params.yaml) are for messages."""

    name: str
    location: str
    section: str
    encoding: str = "utf-8"
    delimiter: str | None = None  # of CSV; None: a tab in .tsv, else a comma
    columns: Collection[str] | None = None  # those that will be used; None: all

    def open(self, **kwargs: Any) -> IO[Any]:
        """Open the file, decompressed."""
        stream: IO[Any] = fsspec.open(self.location, compression="infer", **kwargs).open()
        return stream

    def undecodable(self, error: UnicodeDecodeError, line: int | None = None) -> InputError:
        """Return the error of bytes that are not text in the file's encoding."""
        place = self.name if line is None else f"{self.name}:{line}"
        byte = error.object[error.start]
        return InputError(
            f"{place}: byte 0x{byte:02x} is not {self.encoding}; name its encoding as {self.section}.encoding, such as "
            "cp1252 or utf-16"
        )


def json_rows(file: TableFile) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file: one per line, all in one list, or in the one list of an object."""
    lines = _lines(file)
    begun = list[bytes]()  # the lines read so far: up to the second that is not blank
    for line in lines:
        begun.append(line)
        if sum(bool(one.strip()) for one in begun) == 2:
            break
    texts = [line.strip() for line in begun if line.strip()]
    whole = len(texts) == 1 or not texts[0].endswith(b"}") if texts else False
    if texts and texts[0].startswith(b"["):
        yield from _objects(file.name, _parse(file.name, b"".join([*begun, *lines])))
    elif whole and ".jsonl" not in file.name:
        yield from _rows_of_object(file.name, _parse(file.name, b"".join([*begun, *lines])))
    else:
        yield from (row for _, row in parse_lines(file.name, chain(begun, lines)))


def csv_rows(file: TableFile) -> Iterator[dict[str, Any]]:
    """Yield the rows below the header, every cell as text and an empty one as None."""
    delimiter = file.delimiter or ("\t" if ".tsv" in file.name else ",")
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    encoding = "utf-8-sig" if file.encoding.lower().replace("_", "-") in ("utf-8", "utf8") else file.encoding
    with file.open(mode="rt", encoding=encoding, newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            if repeated := sorted({name for name in header if header.count(name) > 1}):
                raise InputError(f"{file.name}:1: has two columns {quoted(repeated[0])}; rename one")
            if (
                len(header) == 1
                and file.delimiter is None
                and (other := next((c for c in ";\t|" if c in header[0]), ""))
            ):
                raise InputError(
                    f"{file.name}:1: is one column, {quoted(header[0])}; if {other!r} parts its columns, set "
                    f"{file.section}.delimiter to it, and otherwise to {delimiter!r}"
                )
            for cells in reader:
                if cells and len(cells) != len(header):
                    raise InputError(
                        f"{file.name}:{reader.line_num}: has {len(cells)} cells, and the header {len(header)}; check "
                        f"the quotes, or set {file.section}.delimiter"
                    )
                if cells:
                    yield {name: cell or None for name, cell in zip(header, cells, strict=True)}
        except csv.Error as error:
            raise InputError(f"{file.name}:{reader.line_num}: {error}; check the quotes") from None
        except UnicodeDecodeError as error:
            raise file.undecodable(error) from None


def parquet_rows(file: TableFile) -> Iterator[dict[str, Any]]:
    """Yield the rows; columns that are not used are not read."""
    with file.open(mode="rb") as stream:
        table = ParquetFile(stream)
        names = table.schema_arrow.names
        used = [name for name in names if file.columns is None or name in file.columns]
        for batch in table.iter_batches(columns=used or names):
            yield from batch.to_pylist()


def _lines(file: TableFile) -> Iterator[bytes]:
    """Yield a file's lines in UTF-8, without a byte order mark; only line feeds part them."""
    if file.encoding.lower().replace("_", "-") not in ("utf-8", "utf8"):
        with file.open(mode="rt", encoding=file.encoding, newline="\n") as texts:
            try:
                yield from (text.encode() for text in texts)
            except UnicodeDecodeError as error:
                raise file.undecodable(error) from None
        return
    with file.open(mode="rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise file.undecodable(error, number) from None
            yield line.removeprefix(BOM) if number == 1 else line


def _parse(name: str, data: bytes) -> Any:
    try:
        return parse_json(data.decode())
    except ValueError as error:
        raise InputError(f"{name}: not valid JSON ({error}); fix the file") from None


def _rows_of_object(name: str, value: Any) -> list[dict[str, Any]]:
    """Return the rows in the one list of an object, or the object itself if it has no list of objects."""
    if not isinstance(value, dict):
        return _objects(name, [value])
    lists = [key for key, one in value.items() if isinstance(one, list) and one and isinstance(one[0], dict)]
    if len(lists) > 1:
        found = ", ".join(map(quoted, lists))
        raise InputError(f"{name}: is one object with several lists ({found}); save the one of the rows alone")
    return _objects(name, value[lists[0]]) if lists else [value]


def _objects(name: str, rows: list[Any]) -> list[dict[str, Any]]:
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise InputError(f"{name}: element {number} is {quoted(row)}; each must be an object in braces")
    return rows
