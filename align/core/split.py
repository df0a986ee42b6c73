"""Splits of rows by the conversation that they belong to."""

import hashlib
from collections.abc import Callable, Sequence
from typing import TypeVar

from align.core.errors import InputError
from align.core.rows import Message

T = TypeVar("T")


def digest(seed: int, *texts: str) -> bytes:
    """Return a hash of the seed and the texts, by which to order rows whatever their place in the file."""
    return hashlib.sha256("\x1f".join((str(seed), *texts)).encode()).digest()


def prompt_key(prompt: str) -> str:
    """Return what prompts that differ in case or outer blanks share."""
    return prompt.strip().lower()


def conversation_key(messages: Sequence[Message]) -> str:
    """Return what conversations on one prompt share: the first user turn, on which later turns depend."""
    return prompt_key(next((turn.content for turn in messages if turn.role == "user"), messages[0].content))


def split_by_group(
    rows: Sequence[T],
    group: Callable[[T], str],
    fraction: float,
    seed: int,
    source: str = "the rows",
    advice: str = "add rows",
) -> tuple[list[T], list[T]]:
    """Split rows into (train, test) by whole groups, about `fraction` of them to test; keep the order.

    A group's side depends only on its text and the seed, so that rows added later move no others. The message about too
    few groups names `source`, the file or the param, and ends with `advice`.
    """
    # Places are uniform over [0, 1).
    places = {key: int.from_bytes(digest(seed, key)[:8], "big") / 2**64 for key in {group(row) for row in rows}}
    if len(places) < 2:
        raise InputError(
            f"{source}: a split needs at least two different prompts, found {len(places)} usable; {advice}"
        )
    lowest, highest = min(places.values()), max(places.values())
    test = {key for key, place in places.items() if place < highest and (place < fraction or place == lowest)}
    return [row for row in rows if group(row) not in test], [row for row in rows if group(row) in test]
