"""Rows in a terminal, one panel each: values are plain text, never markup or control characters."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from align.cli.show.selection import Row
from align.core.errors import printable

SHORT = 40  # characters of a value that shares a line with others
TEXTS = {"prompt", "response", "completion", "chosen", "rejected", "messages", "turns", "justification", "judgements"}
SCORES = {"score", "judge_score", "reward", "margin", "chosen_score", "rejected_score", "predicted"}
REPLIES = dict.fromkeys(("assistant", "response", "completion", "chosen"), "green")
STYLES = REPLIES | {"system": "yellow", "user": "blue", "prompt": "blue", "rejected": "red"}


def show_rows(console: Console, rows: Sequence[Row]) -> None:
    """Print a panel for each row."""
    for number, row in enumerate(rows, 1):
        title = str(row.get("id") or row.get("question_id") or f"row {number}")
        console.print(Panel(Group(*_parts(row)), title=Text(printable(title), "bold"), title_align="left"))


def _parts(row: Row) -> Iterator[RenderableType]:
    """Yield a line of the short values, then a block for each long one."""
    line, blocks = Text(), []
    for column, value in row.items():
        if column in ("id", "question_id"):
            continue
        if _is_short(column, value):
            line.append("  " if line else "")
            line.append(printable(column) + " ", "dim")
            line.append(printable(_shown(value)), "bold magenta" if column in SCORES else "")
        else:
            blocks += _labelled(column, value)
    if line:
        yield line
    for label, value in blocks:
        yield Text(printable(label), f"bold {STYLES.get(label, 'cyan')}")
        yield Text("\n".join(map(printable, _shown(value).expandtabs(4).split("\n"))))


def _is_short(column: str, value: Any) -> bool:
    if isinstance(value, str):
        return column not in TEXTS and len(value) <= SHORT and "\n" not in value
    return value in (None, []) or isinstance(value, int | float)


def _labelled(column: str, value: Any) -> list[tuple[str, Any]]:
    """Return a value as labelled texts: the messages of a conversation, the texts of a list, or the value itself."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return [(f"{column} {number}", item) for number, item in enumerate(value, 1)]
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        messages = [(item.get("role"), item.get("content")) for item in value]
        if all(isinstance(text, str) for message in messages for text in message):
            return messages
    return [(column, value)]


def _shown(value: Any) -> str:
    if value is None or value == []:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
