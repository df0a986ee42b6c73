"""JSON lines, read strictly: a line that is no JSON object is an error that names it."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jsonlines

from align.core.errors import InputError
from align.core.files import check_regular, parse_json

# How a line is written: text as it is; a NaN is an error, since no reader agrees on it.
dumps = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the JSON object of each line of a file, and the line's number; blank lines are ignored."""
    advice = "check the path, or run `dvc repro` or `dvc pull`"
    check_regular(path, advice)
    try:
        with path.open("rb") as stream:
            yield from parse_lines(str(path), stream)
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror}); {advice}") from None


def parse_lines(name: str, lines: Iterable[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the JSON object of each line, and the line's number, from 1; `name` is the file's, for messages."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, _parse_line(f"{name}:{number}", line)


def _loads(line: str | bytes) -> Any:
    return parse_json(str(line))  # bytes are decoded by now


def _parse_line(place: str, line: bytes) -> dict[str, Any]:
    try:
        # `jsonlines` decodes and parses one line; its own counter would start anew for each, so `place` is ours.
        return jsonlines.Reader([line], loads=_loads).read(type=dict)
    except jsonlines.InvalidLineError as error:
        reason = str(error.__cause__ or error).split(" (line")[0]
        raise InputError(f"{place}: not a JSON object: {reason}; each line must be one object in braces") from None
