"""OpenAssistant's message trees: prompts with replies that people ranked.

The export has one tree per line, the hub's tables one message per row. Both become `MessageTree`, up to the first
replies.
"""

from collections import Counter
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field

from align.core.jsonl import read_objects
from align.core.rows import Row, Text, Whole, read_rows


class ForeignRow(Row):
    """Base of a row in a foreign format: strict about the keys used here; other keys are ignored."""

    model_config = ConfigDict(extra="ignore")


class TreeReply(ForeignRow):
    """A reply to a tree's root. The export omits keys without a value, or writes null."""

    text: str
    role: Literal["prompter", "assistant"]
    rank: Whole | None = Field(default=None, ge=0)
    deleted: bool | None = None


class TreeRoot(ForeignRow):
    """A tree's prompt and the replies to it."""

    text: str
    role: Literal["prompter"]
    lang: str | None = None
    deleted: bool | None = None
    replies: list[TreeReply] | None = None


class MessageTree(ForeignRow):
    """A conversation tree in OpenAssistant's export format, up to its first replies."""

    message_tree_id: Text
    tree_state: str | None = None
    prompt: TreeRoot


class FlatMessage(TreeReply):
    """A message in the hub's tables; `parent_id` is null for a tree's prompt."""

    message_id: Text
    parent_id: str | None
    message_tree_id: Text
    tree_state: str | None = None
    lang: str | None = None


def read_trees(path: Path) -> tuple[list[MessageTree], Counter[str]]:
    """Return a file's trees, in its order, and (flat form only) the count of messages outside any tree by reason."""
    first = next(read_objects(path), None)
    if first is None or "parent_id" not in first[1]:
        return read_rows(path, MessageTree, unique=["message_tree_id"]), Counter()
    messages = read_rows(path, FlatMessage, unique=["message_id"])
    known = {message.message_id for message in messages}
    children: dict[str, list[FlatMessage]] = {}
    for message in messages:
        if message.parent_id is not None:
            children.setdefault(message.parent_id, []).append(message)
    trees = [
        MessageTree(
            message_tree_id=root.message_tree_id,
            tree_state=root.tree_state,
            prompt=TreeRoot.model_validate({**vars(root), "replies": children.get(root.message_id, [])}),
        )
        for root in messages
        if root.parent_id is None and root.role == "prompter"
    ]
    left_out = Counter[str]()
    left_out["messages without their parent"] = sum(len(own) for key, own in children.items() if key not in known)
    left_out["trees without a prompt"] = sum(row.parent_id is None and row.role != "prompter" for row in messages)
    return trees, +left_out


def ranked_replies(tree: MessageTree, *, language: str | None) -> list[tuple[int, str]] | str:
    """Return (rank, text) of the replies to a tree's prompt, best first, or the reason why the tree is unusable.

    Replies that are deleted, blank, unranked or not an assistant's are left out. `language` is the code required of the
    prompt, None for any.
    """
    root = tree.prompt
    if root.deleted:
        return "deleted"
    if tree.tree_state not in (None, "ready_for_export"):
        return "not ready for export"  # halted by a moderator, of low grade, or unfinished
    if language is not None and root.lang != language:
        return "another language"
    if not root.text.strip():
        return "blank prompt"
    return sorted(
        (reply.rank, reply.text.strip())
        for reply in root.replies or []
        if reply.role == "assistant" and reply.rank is not None and not reply.deleted and reply.text.strip()
    )
