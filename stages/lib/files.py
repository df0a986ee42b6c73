"""Files that are whole or absent: outputs are written under a temporary name and renamed at the end."""

import csv
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from stages.lib.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`, and rename it to `path` once the block has succeeded.

    The block may create a file or a directory there. On an exception the temporary is removed and `path` is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".tmp-{path.name}"
    _remove(temporary)
    try:
        yield temporary
        if temporary.is_dir():
            _remove(path)
        else:
            _sync(temporary)
        os.replace(temporary, path)
    except Exception as error:
        if not isinstance(error, InputError) and (reason := out_of_space(error)):
            raise InputError(f"{path}: cannot write ({reason}); free some space and run it again") from None
        raise
    finally:
        _remove(temporary)


def out_of_space(error: BaseException) -> str | None:
    """Return what the system says if the error comes from a full disk, a quota or a limit on the size of files."""
    # safetensors and tokenizers put the system's words into exceptions of their own; torch does not say why.
    for text in (os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)):
        if text in str(error):
            return text
    return "is the disk full?" if "inline_container" in str(error) and "Reader" not in str(error) else None


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; a NaN or infinity is an error, since no JSON reader agrees on them."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read one of the pipeline's JSON files."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: cannot read ({error}); run `dvc repro`") from None
    return value


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `rows` as CSV with the columns of all rows in order of first appearance; a missing value is empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def sha256(path: Path) -> str:
    """Return the hex SHA-256 of a file, or of a directory: of the sorted (name, hash) lines of its files."""
    if path.is_dir():
        lines = [
            f"{file.relative_to(path).as_posix()} {sha256(file)}\n"
            for file in sorted(path.rglob("*"))
            if file.is_file()
        ]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    stat = path.stat()
    # A model's weights are asked for more than once in a process. A small file may change within a tick of the clock.
    hashed = _remembered_sha256 if stat.st_size >= 2**24 else _file_sha256
    return hashed(path.resolve(), stat.st_size, stat.st_mtime_ns, stat.st_ino)


def _file_sha256(path: Path, *_: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


_remembered_sha256 = cache(_file_sha256)  # the other arguments tell whether the file is the same


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
