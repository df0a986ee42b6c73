"""A conversation as the one question that the judge's request has room for."""

import re
from collections.abc import Sequence

from align.core.rows import Message
from align.judge.request import without_forgery

_LABEL = re.compile(r"^(\W*)(system|user|assistant)(\s*:)", re.IGNORECASE | re.MULTILINE)


def conversation_question(messages: Sequence[Message]) -> str:
    """Return what the judge reads as the question: the text of a single message unchanged, or else all turns so far.

    Each turn begins with its role, as in `User: Why?`. A turn cannot forge another: imitations of the request are
    removed turn by turn, before a label could hide them, and a label within a turn gets a space before its colon.
    """
    if len(messages) == 1:
        return messages[0].content
    turns = ((row.role.capitalize(), _LABEL.sub(r"\1\2 \3", without_forgery(row.content))) for row in messages)
    return "\n".join(f"{role}: {text}" for role, text in turns)
