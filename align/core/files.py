"""Strict readers, and atomic writers: each output is written under a temporary name, then renamed."""

import csv
import errno
import hashlib
import json
import math
import os
import shutil
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from align.core.errors import InputError, quoted

REBUILD = "run `dvc checkout` or `dvc repro`"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`, for a file or a directory, and rename it to `path` if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".tmp-{path.name}"
    _remove(temporary)
    try:
        yield temporary
        if temporary.is_dir():
            _remove(path)
        else:
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
        os.replace(temporary, path)
    except Exception as error:
        if not isinstance(error, InputError) and (reason := out_of_space(error)):
            raise InputError(f"{path}: cannot write ({reason}); free some space and run it again") from None
        raise
    finally:
        _remove(temporary)


def out_of_space(error: BaseException) -> str | None:
    """Return the reason if the error comes from a full disk, a quota or a file size limit."""
    # safetensors and tokenizers wrap the system's message in their own exceptions; torch gives no reason.
    for text in (os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)):
        if text in str(error):
            return text
    return "is the disk full?" if "inline_container" in str(error) and "Reader" not in str(error) else None


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; NaN and infinity, which JSON lacks, raise `ValueError`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def check_regular(path: Path, advice: str = REBUILD) -> None:
    """Raise `InputError` unless `path` is a regular file."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {advice}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{quoted(str(path))}: cannot read ({reason}); {advice}") from None
    if not stat.S_ISREG(mode):  # opening a named pipe would block
        raise InputError(f"{path}: is {'a directory' if stat.S_ISDIR(mode) else 'not a regular file'}; {advice}")


def read_bytes(path: Path, advice: str = REBUILD) -> bytes:
    """Read a regular file."""
    check_regular(path, advice)
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror}); {advice}") from None


def parse_json(text: str) -> Any:
    """Parse JSON by RFC 8259, more strictly than Python's parser.

    Raises:
        ValueError: also for NaN, numbers that are too large, duplicate keys, deep nesting and lone surrogates.
    """
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float, parse_int=_int
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"half a surrogate pair: \\u{ord(error.object[error.start]):04x}") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        key = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"key {quoted(key)} appears twice in one object")
    return value


def _constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{quoted(text)} is too large a number")
    return value


def _int(text: str) -> int:
    if len(text) > 18:  # any 18 digits fit into 64 bits
        raise ValueError(f"{quoted(text)} is too large a number")
    return int(text)


def read_json(path: Path, advice: str = REBUILD) -> dict[str, Any]:
    """Read a JSON file that holds an object."""
    try:
        value = parse_json(read_bytes(path, advice).decode("utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); {advice}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected an object in braces, got {type(value).__name__}; {advice}")
    return value


def read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, float]]:
    """Read a table of numbers with at least `columns`; empty cells of other columns are left out of their rows."""
    text = read_bytes(path).decode("utf-8", errors="replace")
    rows: list[dict[str, float]] = []
    reader = csv.reader(text.splitlines(), strict=True)
    try:
        header = next(reader, [])
        if missing := [column for column in columns if column not in header]:
            raise InputError(f"{path}: column {', '.join(missing)} is missing; {REBUILD}")
        for row in reader:
            if len(row) != len(header):
                raise ValueError(f"{len(row)} cells under {len(header)} columns")
            cells = zip(header, row, strict=True)
            rows.append({key: float(value) for key, value in cells if value or key in columns})
    except (csv.Error, ValueError) as error:
        raise InputError(f"{path}:{reader.line_num}: not a row of numbers ({error}); {REBUILD}") from None
    return rows


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `rows` as CSV; columns are in order of first appearance, missing values are empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def sha256(path: Path) -> str:
    """Return the hex SHA-256 of a file, or for a directory that of its sorted `name hash` lines."""
    if path.is_dir():
        files = (file for file in sorted(path.rglob("*")) if file.is_file())
        lines = [f"{file.relative_to(path).as_posix()} {sha256(file)}\n" for file in files]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    status = path.stat()
    # Hash a model's weights once per process. A small file may change within one tick of its mtime: hash it each time.
    hashed = _remembered_sha256 if status.st_size >= 2**24 else _file_sha256
    return hashed(path.resolve(), status.st_size, status.st_mtime_ns, status.st_ino)


def _file_sha256(path: Path, *_: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


_remembered_sha256 = cache(_file_sha256)  # size, mtime and inode identify the content


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
