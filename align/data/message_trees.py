"""OpenAssistant's message trees: a prompt and the replies that people ranked.

They come as trees (the export, one a line) or flat (the hub's tables, one message a row with its parent's id); both are
read into the same `MessageTree`, as far as the first replies.
"""

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field

from align.core.jsonl import read_objects
from align.core.rows import Row, Text, read_rows


class ForeignRow(Row):
    """Base of a row in a format of others: the keys that are used here are strict, all others are let pass."""

    model_config = ConfigDict(extra="ignore")


class TreeReply(ForeignRow):
    """A reply to a tree's root. The export leaves out keys without a value, or writes them as null."""

    text: str
    role: Literal["prompter", "assistant"]
    rank: int | None = Field(default=None, ge=0)
    deleted: bool | None = None


class TreeRoot(ForeignRow):
    """The prompt that a tree starts with, and the replies to it."""

    text: str
    role: Literal["prompter"]
    lang: str | None = None
    deleted: bool | None = None
    replies: list[TreeReply] | None = None


class MessageTree(ForeignRow):
    """A conversation tree in OpenAssistant's export format, as far as its first replies."""

    message_tree_id: Text
    tree_state: str | None = None
    prompt: TreeRoot


class FlatMessage(TreeReply):
    """A message of a tree as the hub's tables have it: one a row, `parent_id` null for a tree's prompt."""

    message_id: Text
    parent_id: str | None
    message_tree_id: Text
    tree_state: str | None = None
    lang: str | None = None


def read_trees(path: Path) -> tuple[list[MessageTree], Counter[str]]:
    """Read trees of either form, in the file's order; in the flat one, what belongs to no tree is counted."""
    first = next(islice(read_objects(path), 1), None)
    if first is None or "parent_id" not in first[1]:
        return read_rows(path, MessageTree, unique=["message_tree_id"]), Counter()
    return trees_of_messages(read_rows(path, FlatMessage, unique=["message_id"]))


def trees_of_messages(messages: list[FlatMessage]) -> tuple[list[MessageTree], Counter[str]]:
    """Put prompts and the replies to them together, whatever their order; later turns are left alone."""
    known = {message.message_id for message in messages}
    children: dict[str, list[FlatMessage]] = {}
    for message in messages:
        if message.parent_id is not None:
            children.setdefault(message.parent_id, []).append(message)
    trees = [
        MessageTree(
            message_tree_id=root.message_tree_id,
            tree_state=root.tree_state,
            prompt=TreeRoot(
                text=root.text,
                role="prompter",
                lang=root.lang,
                deleted=root.deleted,
                replies=[
                    TreeReply(text=reply.text, role=reply.role, rank=reply.rank, deleted=reply.deleted)
                    for reply in children.get(root.message_id, [])
                ],
            ),
        )
        for root in messages
        if root.parent_id is None and root.role == "prompter"
    ]
    left_out = Counter(
        {
            "messages without their parent": sum(len(own) for key, own in children.items() if key not in known),
            "trees without a prompt": sum(row.parent_id is None and row.role != "prompter" for row in messages),
        }
    )
    return trees, +left_out


def ranked_replies(tree: MessageTree, *, language: str | None) -> list[tuple[int, str]] | str:
    """Return (rank, text) of the ranked replies to a tree's prompt, best first, or the reason why it has none to use.

    Replies that are deleted, blank, without a rank or not an assistant's are left out.

    Args:
        tree: the tree.
        language: the code that the prompt's language must have, or None for any.
    """
    root = tree.prompt
    if root.deleted:
        return "deleted"
    if tree.tree_state not in (None, "ready_for_export"):
        return "not ready for export"  # halted by a moderator, of low grade, or still growing
    if language is not None and root.lang != language:
        return "another language"
    if not root.text.strip():
        return "blank prompt"
    return sorted(
        (reply.rank, reply.text.strip())
        for reply in root.replies or []
        if reply.role == "assistant" and reply.rank is not None and not reply.deleted and reply.text.strip()
    )
