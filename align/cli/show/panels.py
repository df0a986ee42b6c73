"""Rows in a terminal: a panel each, texts wrapped; nothing in them is markup or reaches the terminal as a command."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from align.cli.show.selection import Row
from align.core.errors import printable

SHORT = 40  # characters of a value that stands beside others in one line
TEXTS = {"prompt", "response", "completion", "chosen", "rejected", "messages", "turns", "justification", "judgements"}
SCORES = {"score", "judge_score", "reward", "margin", "chosen_score", "rejected_score", "predicted"}
STYLES = {
    "system": "yellow",
    "user": "blue",
    "assistant": "green",
    "prompt": "blue",
    "response": "green",
    "completion": "green",
    "chosen": "green",
    "rejected": "red",
}


def show_rows(console: Console, rows: Sequence[Row]) -> None:
    """Print a panel for each row."""
    for number, row in enumerate(rows, 1):
        title = str(row.get("id") or row.get("question_id") or f"row {number}")
        console.print(Panel(Group(*_parts(row)), title=Text(printable(title), "bold"), title_align="left"))


def _parts(row: Row) -> Iterator[RenderableType]:
    short = {
        column: value
        for column, value in row.items()
        if column not in ("id", "question_id") and _is_short(column, value)
    }
    if short:
        line = Text()
        for column, value in short.items():
            line.append("  " if line else "")
            line.append(printable(column) + " ", "dim")
            line.append(_value(value), "bold magenta" if column in SCORES else "")
        yield line
    for column, value in row.items():
        if column in ("id", "question_id") or column in short:
            continue
        if _is_conversation(value):
            for message in value:
                yield from _block(message["role"], message["content"])
        elif isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            for number, item in enumerate(value, 1):
                yield from _block(f"{column} {number}", item)
        else:
            yield from _block(column, value)


def _block(label: str, value: Any) -> Iterator[Text]:
    style = STYLES.get(label, "cyan")
    yield Text(printable(label), f"bold {style}")
    yield Text("\n".join(printable(line) for line in _value(value).expandtabs(4).split("\n")))


def _is_short(column: str, value: Any) -> bool:
    if isinstance(value, str):
        return column not in TEXTS and len(value) <= SHORT and "\n" not in value
    return value in (None, []) or isinstance(value, int | float)


def _is_conversation(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(item, dict) and isinstance(item.get("role"), str) and isinstance(item.get("content"), str)
            for item in value
        )
    )


def _value(value: Any) -> str:
    match value:
        case None | []:
            return "-"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:.4f}".rstrip("0").rstrip(".")
        case str():
            return value
        case _:
            return str(value)
