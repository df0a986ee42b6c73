"""Strict JSON lines: each non-blank line must be a JSON object."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jsonlines

from align.core.errors import InputError
from align.core.files import check_regular, parse_json

# Non-ASCII text is written unescaped; NaN and infinity are errors.
dumps = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number and JSON object of each line of a file that is not blank."""
    advice = "check the path, or run `dvc repro` or `dvc pull`"
    check_regular(path, advice)
    try:
        with path.open("rb") as stream:
            yield from parse_lines(str(path), stream)
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror}); {advice}") from None


def parse_lines(name: str, lines: Iterable[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number, from 1, and JSON object of each line that is not blank; `name` is for messages."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, _parse_line(f"{name}:{number}", line)


def _parse_line(place: str, line: bytes) -> dict[str, Any]:
    try:
        # `jsonlines` has decoded the line when it calls `loads`.
        return jsonlines.Reader([line], loads=lambda text: parse_json(str(text))).read(type=dict)
    except jsonlines.InvalidLineError as error:
        reason = str(error.__cause__ or error).split(" (line")[0]
        raise InputError(f"{place}: not a JSON object: {reason}; each line must be one object in braces") from None
