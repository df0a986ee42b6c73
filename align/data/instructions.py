"""Instruction data (IFT), read from four formats, without held-out prompts."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from align.core.errors import InputError, quoted
from align.core.rows import Instruction, Message, Text, read_numbered_rows
from align.data.message_trees import ForeignRow, MessageTree, ranked_replies, read_trees

InstructionsFormat = Literal["instructions", "prompt_completion", "messages", "message_trees"]
CATEGORY = "source"  # for formats without categories


class Completed(ForeignRow):
    """A prompt and its completion, named as in TRL."""

    prompt: Text
    completion: Text


class Conversation(ForeignRow):
    """A conversation, named as in TRL; its first turn and reply become an instruction."""

    messages: list[Message] = Field(min_length=2)


def read_instructions(
    path: Path, file_format: InstructionsFormat, language: str | None
) -> tuple[list[Instruction], Counter[str]]:
    """Return a file's instructions, in its order, and the count of unusable rows by reason.

    Ids are the rows' own in format `instructions`, the trees' in `message_trees`, and line numbers otherwise.
    """
    if file_format == "instructions":
        return [row for _, row in read_numbered_rows(path, Instruction, unique=["id"])], Counter()
    left_out = Counter[str]()
    if file_format == "prompt_completion":
        results: list[Instruction | str] = [
            _instruction(f"row-{number:06d}", row.prompt, row.completion)
            for number, row in read_numbered_rows(path, Completed)
        ]
    elif file_format == "messages":
        results = [of_conversation(number, row.messages) for number, row in read_numbered_rows(path, Conversation)]
    else:
        trees, left_out = read_trees(path)
        # `take` keeps the front: put first the trees whose best reply beat most others.
        ranked = [(tree, ranked_replies(tree, language=language)) for tree in trees]
        ranked.sort(key=lambda pair: 0 if isinstance(pair[1], str) else len(pair[1]), reverse=True)
        results = [of_tree(tree, replies) for tree, replies in ranked]
    rows = [result for result in results if not isinstance(result, str)]
    left_out += Counter(result for result in results if isinstance(result, str))
    if not rows:
        raise InputError(f"{path}: has no instruction ({_counts(left_out)}); check prepare_data.instructions_format")
    return rows, left_out


def of_conversation(number: int, messages: Sequence[Message]) -> Instruction | str:
    """Return a conversation's first turn with its reply, or the reason why it is unusable.

    An instruction has no system message, and the reply may depend on one.
    """
    prompt, reply = messages[:2]
    if prompt.role == "system":
        return "system message first"
    if (prompt.role, reply.role) != ("user", "assistant"):
        return "no user turn and reply first"
    return _instruction(f"row-{number:06d}", prompt.content, reply.content)


def of_tree(tree: MessageTree, ranked: list[tuple[int, str]] | str) -> Instruction | str:
    """Return a tree's prompt with its reply of rank 0, given its `ranked_replies`, or why it is unusable."""
    if isinstance(ranked, str):
        return ranked
    best = [text for rank, text in ranked if rank == 0]
    if not best:
        return "no reply of rank 0"
    if len(best) > 1:
        return "tied ranks"
    return _instruction(tree.message_tree_id, tree.prompt.text, best[0])


def take(
    rows: Sequence[Instruction], held_out: Callable[[str], str | None], limit: int | None
) -> tuple[list[Instruction], Counter[str]]:
    """Return the first `limit` rows (None: all) whose prompt is not held out, and the count of others by reason.

    `held_out` returns the reason why a prompt must not be trained on, or None.
    """
    left_out = Counter[str]()
    kept: list[Instruction] = []
    for row in rows:
        if reason := held_out(row.prompt):
            left_out[reason] += 1
        elif limit is not None and len(kept) == limit:
            left_out["beyond max_instructions"] += 1
        else:
            kept.append(row)
    if not kept:
        raise InputError(f"prepare_data.instructions: no row is left ({_counts(left_out)}); add instructions")
    return kept, left_out


def _instruction(row_id: str, prompt: str, completion: str) -> Instruction:
    return Instruction(id=row_id, category=CATEGORY, prompt=prompt.strip(), completion=completion.strip())


def _counts(left_out: Counter[str]) -> str:
    return ", ".join(f"{count} {quoted(reason)}" for reason, count in sorted(left_out.items())) or "0 rows"
