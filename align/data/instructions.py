"""Instruction data (IFT), read from the layouts of TRL, ShareGPT, Alpaca and OpenAssistant."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import click

from align.core.errors import InputError, quoted
from align.core.jsonl import read_objects
from align.core.rows import Instruction, Message, read_numbered_rows
from align.data.conversations import CONVERSATION_KEYS, Unusable, check_turns, messages_of, note_unread, text_of
from align.data.message_trees import MessageTree, ranked_replies, read_trees

# instructions: our own | prompt_completion: TRL's, texts or turns | messages: turns, ShareGPT's too |
# alpaca: instruction, input, output | message_trees: OpenAssistant's
InstructionsFormat = Literal["auto", "instructions", "prompt_completion", "messages", "alpaca", "message_trees"]
CATEGORY = "source"  # for formats without categories
REPLIES = ("completion", "response", "output")


def read_instructions(
    path: Path, file_format: InstructionsFormat, language: str | None
) -> tuple[list[Instruction], Counter[str]]:
    """Return a file's instructions, in its order, and the count of unusable rows by reason.

    Every reply of a conversation becomes an instruction, with the turns before it as history. Ids are the rows' own in
    format `instructions`, the trees' in `message_trees`, and line numbers otherwise.
    """
    layout = instructions_layout(path, file_format)
    if layout == "instructions":
        number, first = next(read_objects(path), (0, {}))
        missing = [key for key in ("id", "category") if key not in first]
        if missing and {"prompt", "completion"} <= first.keys():
            raise InputError(
                f'{path}:{number}: "{missing[0]}" is missing; a row of ours has it, and for rows of prompt and '
                "completion alone set prepare_data.instructions_format to prompt_completion"
            )
        return [row for _, row in read_numbered_rows(path, Instruction, unique=["id"])], Counter()
    left_out = Counter[str]()
    rows: list[Instruction] = []
    if layout == "message_trees":
        trees, left_out = read_trees(path)
        # `take` keeps the front: put first the trees whose best reply beat most others.
        ranked = [(tree, ranked_replies(tree, language=language)) for tree in trees]
        ranked.sort(key=lambda pair: 0 if isinstance(pair[1], str) else len(pair[1]), reverse=True)
        results = [of_tree(tree, replies) for tree, replies in ranked]
        rows = [result for result in results if not isinstance(result, str)]
        left_out += Counter(result for result in results if isinstance(result, str))
    else:
        read, keys = READERS[layout]
        unread = set[str]()
        for number, row in read_objects(path):
            unread |= row.keys() - keys
            try:
                messages = read(row, f"{path}:{number}")
                check_turns(messages)
                found = of_conversation(f"row-{number:06d}", messages)
            except Unusable as error:
                left_out[error.reason] += 1
                continue
            rows += found
            left_out += Counter([] if found else ["no reply"])
        note_unread(path, unread)
    if not rows:
        raise InputError(f"{path}: has no instruction ({_counts(left_out)}); check prepare_data.instructions_format")
    return rows, left_out


def instructions_layout(path: Path, file_format: InstructionsFormat) -> InstructionsFormat:
    """Return the layout of a file: that of its first row for `auto`, which is said; else as set, if it can be."""
    number, first = next(read_objects(path), (0, {}))
    found = layout_of(first)
    if file_format == "auto":
        if found != "instructions":
            click.echo(f"{path}: read as {found} (prepare_data.instructions_format)", err=True)
        return found
    if file_format == "instructions" and found != file_format:
        raise InputError(
            f"{path}:{number}: looks like {found}; set prepare_data.instructions_format to {found} or auto"
        )
    return file_format


def layout_of(row: dict[str, Any]) -> InstructionsFormat:
    """Return the layout that a file's first row has; our own, whose reader is strict, if it is no other."""
    if "message_tree_id" in row:
        return "message_trees"
    if any(isinstance(row.get(key), list) for key in CONVERSATION_KEYS):
        return "messages"
    if "instruction" in row and any(key in row for key in REPLIES):
        return "alpaca"
    own = "id" in row or "category" in row
    replied = any(key in row for key in REPLIES)
    return "prompt_completion" if "prompt" in row and replied and not ("completion" in row and own) else "instructions"


def of_conversation(row_id: str, messages: Sequence[Message]) -> list[Instruction]:
    """Return an instruction for each reply of a conversation whose turns alternate."""
    places = [place for place, message in enumerate(messages) if message.role == "assistant"]
    return [
        Instruction(
            id=row_id if len(places) == 1 else f"{row_id}.{count}",
            category=CATEGORY,
            history=list(messages[: place - 1]),
            prompt=messages[place - 1].content,
            completion=messages[place].content,
        )
        for count, place in enumerate(places, 1)
    ]


def _of_messages(row: dict[str, Any], place: str) -> list[Message]:
    key = next((key for key in CONVERSATION_KEYS if row.get(key) is not None), None)
    if key is None:
        raise InputError(f'{place}: "messages" is missing (or "conversations"); add it')
    return _system(row, place) + messages_of(row[key], f"{place}: {key}")


def _of_completion(row: dict[str, Any], place: str) -> list[Message]:
    return _side(row, ("prompt",), "user", place) + _side(row, REPLIES, "assistant", place)


def _of_alpaca(row: dict[str, Any], place: str) -> list[Message]:
    [prompt] = _side(row, ("instruction",), "user", place)
    if row.get("input"):
        prompt = Message(role="user", content=prompt.content + "\n" + text_of(row, "input", place))
    earlier = list[Message]()
    for number, turn in enumerate(row.get("history") or []):
        if not isinstance(turn, list) or len(turn) != 2:
            raise InputError(f"{place}: history.{number} should be a question and its answer, got {quoted(turn)}")
        pair = {"question": turn[0], "answer": turn[1]}
        earlier += [Message(role="user", content=text_of(pair, "question", place))]
        earlier += [Message(role="assistant", content=text_of(pair, "answer", place))]
    return [*_system(row, place), *earlier, prompt, *_side(row, REPLIES, "assistant", place)]


def _side(row: dict[str, Any], keys: Sequence[str], role: Literal["user", "assistant"], place: str) -> list[Message]:
    key = next((key for key in keys if key in row), None)
    if key is None:
        raise InputError(f'{place}: "{keys[0]}" is missing; add it')
    if isinstance(row[key], list):
        return messages_of(row[key], f"{place}: {key}")
    return [Message(role=role, content=text_of(row, key, place))]


def _system(row: dict[str, Any], place: str) -> list[Message]:
    return [Message(role="system", content=text_of(row, "system", place))] if row.get("system") else []


READERS: dict[str, tuple[Callable[[dict[str, Any], str], list[Message]], set[str]]] = {
    "messages": (_of_messages, {*CONVERSATION_KEYS, "system"}),
    "prompt_completion": (_of_completion, {"prompt", *REPLIES}),
    "alpaca": (_of_alpaca, {"instruction", "input", "system", "history", *REPLIES}),
}


def of_tree(tree: MessageTree, ranked: list[tuple[int, str]] | str) -> Instruction | str:
    """Return a tree's prompt with its reply of rank 0, given its `ranked_replies`, or why it is unusable."""
    if isinstance(ranked, str):
        return ranked
    best = [text for rank, text in ranked if rank == 0]
    if not best:
        return "no reply of rank 0"
    if len(best) > 1:
        return "tied ranks"
    prompt = tree.prompt.text.strip()
    return Instruction(id=tree.message_tree_id, category=CATEGORY, prompt=prompt, completion=best[0].strip())


def take(
    rows: Sequence[Instruction], held_out: Callable[[str], str | None], limit: int | None
) -> tuple[list[Instruction], Counter[str]]:
    """Return the first `limit` rows (None: all) whose prompt is not held out, and the count of others by reason.

    `held_out` returns the reason why a prompt must not be trained on, or None.
    """
    left_out = Counter[str]()
    kept: list[Instruction] = []
    for row in rows:
        asked = [message.content for message in row.messages if message.role == "user"]
        if reason := next(filter(None, map(held_out, asked)), None):
            left_out[reason] += 1
        elif limit is not None and len(kept) == limit:
            left_out["beyond max_instructions"] += 1
        else:
            kept.append(row)
    if not kept:
        raise InputError(f"prepare_data.instructions: no row is left ({_counts(left_out)}); add instructions")
    return kept, left_out


def _counts(left_out: Counter[str]) -> str:
    return ", ".join(f"{count} {quoted(reason)}" for reason, count in sorted(left_out.items())) or "0 rows"
