"""JSON lines, read strictly: a line that is no JSON object is an error that names it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonlines

from stages.lib.errors import InputError
from stages.lib.files import check_regular, parse_json


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the JSON object of each line of a file, and the line's number; blank lines are ignored."""
    advice = "check the path, or run `dvc repro` or `dvc pull`"
    check_regular(path, advice)
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield number, _parse_line(f"{path}:{number}", line)
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror}); {advice}") from None


def _loads(line: str | bytes) -> Any:
    return parse_json(str(line))  # bytes are decoded by now


def _parse_line(place: str, line: bytes) -> dict[str, Any]:
    try:
        # `jsonlines` decodes and parses one line; its own counter would start anew for each, so `place` is ours.
        return jsonlines.Reader([line], loads=_loads).read(type=dict)
    except jsonlines.InvalidLineError as error:
        reason = str(error.__cause__ or error).split(" (line")[0]
        raise InputError(f"{place}: not a JSON object: {reason}; each line must be one object in braces") from None
