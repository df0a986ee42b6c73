"""Conversations in the layouts of public data sets: OpenAI's messages, ShareGPT's turns, content in parts."""

from collections.abc import Iterable
from typing import Any

import click

from align.core.errors import InputError, quoted
from align.core.rows import Message

# What data sets call the roles; `tool` stands for all that only a model with tools reads or writes.
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "bing", "bard"), "assistant"),
    **dict.fromkeys(
        ("tool", "tool_call", "tool_response", "function", "function_call", "function_response", "observation"), "tool"
    ),
    "ipython": "tool",
}
TURN_KEYS = {"role", "from", "content", "value"}
CONVERSATION_KEYS = ("messages", "conversations", "conversation")  # where a row keeps its turns


class Unusable(ValueError):
    """A row that is well formed, but of no use here; `reason` is a category for counting."""

    def __init__(self, reason: str, detail: str | None = None) -> None:
        super().__init__(detail or reason)
        self.reason = reason


def messages_of(value: Any, place: str) -> list[Message]:
    """Return a list of turns as messages, with the roles and keys of any of the layouts.

    Args:
        value: `{role, content}` or `{from, value}` each; other keys of a turn are not read.
        place: file, line and key, for messages.

    Raises:
        InputError: the value has another shape.
        Unusable: a turn is empty or has no text, or is for models with tools.
    """
    if not isinstance(value, list) or not value:
        raise InputError(f"{place} should be a list of turns, got {quoted(value)}; fix the row")
    return [_message(turn, f"{place}.{number}") for number, turn in enumerate(value)]


def check_turns(messages: list[Message]) -> None:
    """Raise `Unusable` unless user and assistant take turns, the user first, after at most one system message."""
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    if not turns or turns[0].role != "user":
        raise Unusable("no user turn first")
    for number, message in enumerate(turns):
        if message.role != ("user", "assistant")[number % 2]:
            raise Unusable("a later system message" if message.role == "system" else "turns do not alternate")


def text_of(row: dict[str, Any], key: str, place: str) -> str:
    """Return the text of a key, stripped; `Unusable` if it is blank or null."""
    value = row[key]
    if value is not None and not isinstance(value, str):
        raise InputError(f'{place}: "{key}" should be a text, got {quoted(value)}; fix the row')
    if value is None or not value.strip():
        raise Unusable(f"no text in {key}")
    return value.strip()


def note_unread(path: object, keys: Iterable[str]) -> None:
    """Say once which keys of a file are not read."""
    if names := sorted(keys):
        click.echo(f"{path}: keys that are not read: {', '.join(map(quoted, names))}", err=True)


def _message(turn: Any, place: str) -> Message:
    if not isinstance(turn, dict):
        raise InputError(f"{place} should be an object with role and content, got {quoted(turn)}; fix the row")
    said = {key: next((turn[name] for name in names if name in turn), None) for key, names in _NAMES.items()}
    if not isinstance(said["role"], str):
        raise InputError(f'{place} has no text as "role" (or "from"), got {quoted(said["role"])}; fix the row')
    role = ROLES.get(said["role"].lower())
    if role == "tool":
        raise Unusable("a turn of a tool")
    if role is None:
        raise Unusable(f"a turn of role {said['role'][:40]}")
    text = _text(said["content"], place)
    return Message.model_validate({"role": role, "content": text})


_NAMES = {"role": ("role", "from"), "content": ("content", "value")}


def _text(content: Any, place: str) -> str:
    if isinstance(content, list):  # parts, as of models that also see
        for part in content:
            if not isinstance(part, dict) or not isinstance(part.get("type", "text"), str):
                raise InputError(f"{place}.content has the part {quoted(part)}; expected objects of type and text")
            if part.get("type", "text") != "text":
                raise Unusable(f"a part of type {part['type'][:40]}")
        texts = [part.get("text") for part in content]
        content = "".join(text for text in texts if isinstance(text, str)) if texts else None
    if content is None:
        raise Unusable("a turn without text")
    if not isinstance(content, str):
        raise InputError(f"{place}.content should be a text, got {quoted(content)}; fix the row")
    if not content.strip():
        raise Unusable("a blank turn")
    return content.strip()
