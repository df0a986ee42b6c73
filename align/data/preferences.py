"""Preference pairs, read from the layouts of hh-rlhf, TRL, UltraFeedback and LLaMA-Factory."""

import math
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import click

from align.core.errors import InputError, quoted
from align.core.jsonl import read_objects
from align.core.rows import Message, PreferencePair, Transcript, parse_row
from align.data.conversations import (
    CONVERSATION_KEYS,
    Unusable,
    check_turns,
    messages_of,
    note_unread,
    text_of,
)
from align.data.transcripts import parse_pair, parse_transcript

# transcripts: hh-rlhf's texts with "\n\nHuman: " and "\n\nAssistant: " turns | pairs: texts or turns, and a prompt
PreferencesFormat = Literal["auto", "transcripts", "pairs"]
PROMPT_KEYS = ("prompt", "question", "instruction")
SCORE_KEYS = ("score_chosen", "score_rejected")
PAIR_KEYS = {*PROMPT_KEYS, *CONVERSATION_KEYS, "input", "system", "chosen", "rejected", *SCORE_KEYS}


def read_preferences(
    path: Path, file_format: PreferencesFormat = "auto", drop: bool = False, limit: int | None = None
) -> tuple[list[PreferencePair], dict[str, int]]:
    """Read the first rows of a file into pairs; drop and count unusable ones, or stop at the first."""
    pairs: list[PreferencePair] = []
    dropped = Counter[str]()
    unread = set[str]()
    layout: str = file_format
    for count, (number, row) in enumerate(read_objects(path)):
        if count == limit:
            break
        place = f"{path}:{number}"
        if count == 0:
            found = layout_of(row)
            if file_format == "auto":
                layout = found
                if found != "transcripts":
                    click.echo(f"{path}: read as {found} (prepare_data.preferences_format)", err=True)
            elif file_format == "transcripts" != found:
                raise InputError(f"{place}: looks like pairs; set prepare_data.preferences_format to pairs or auto")
        try:
            pairs.append(_pair(f"pref-{number:04d}", row, layout, place))
            unread |= row.keys() - (PAIR_KEYS if layout == "pairs" else Transcript.model_fields.keys())
        except Unusable as error:
            if not drop:
                raise InputError(
                    f"{place}: {error}; fix or delete the row, or set prepare_data.unusable_preferences to drop, which "
                    "counts such rows"
                ) from None
            dropped[error.reason] += 1
    if not pairs and not dropped:
        raise InputError(f"{path}: has no rows; at least one is needed")
    note_unread(path, unread)
    return pairs, dict(sorted(dropped.items()))


def layout_of(row: dict[str, Any]) -> str:
    """Return the layout that a file's first row has."""
    sides = row.get("chosen"), row.get("rejected")
    if any(isinstance(side, list | dict) for side in sides):
        return "pairs"
    prompted = any(key in row for key in (*PROMPT_KEYS, *CONVERSATION_KEYS))
    return "pairs" if prompted and all(isinstance(side, str) for side in sides) else "transcripts"


def _pair(row_id: str, row: dict[str, Any], layout: str, place: str) -> PreferencePair:
    if layout == "transcripts":
        known = {key: row[key] for key in Transcript.model_fields if key in row}
        return parse_pair(row_id, parse_row(place, known, Transcript))
    for side in ("chosen", "rejected"):
        if side not in row:
            raise InputError(f'{place}: "{side}" is missing; a pair has the keys prompt, chosen, rejected')
    context = _context(row, place)
    sides = {}
    for side in ("chosen", "rejected"):
        *turns, reply = _side(row, side, place)
        # A side may hold the whole conversation, its prompt included, or only what follows the prompt.
        whole = turns if turns and turns[0].role in ("system", "user") else [*context, *turns]
        if whole is turns and turns[0].role == "user" and context and context[0].role == "system":
            whole = [context[0], *turns]
        if reply.role != "assistant":
            raise Unusable("no reply last", f'"{side}" does not end with a reply of the assistant')
        if not whole:
            raise Unusable("no prompt", f'"{side}" has no turn before the reply, and the row no prompt')
        check_turns([*whole, reply])
        sides[side] = (whole, reply.content)
    (whole, chosen), (other, rejected) = sides["chosen"], sides["rejected"]
    if whole != other:
        raise Unusable("differ before the last reply", '"chosen" and "rejected" differ before the last reply')
    if chosen == rejected:
        raise Unusable("equal replies", '"chosen" and "rejected" are equal')
    return PreferencePair(id=row_id, messages=whole, chosen=chosen, rejected=rejected, margin=_margin(row, place))


def _context(row: dict[str, Any], place: str) -> list[Message]:
    """Return the messages before the replies; empty if only the sides have them."""
    key = next((key for key in (*CONVERSATION_KEYS, *PROMPT_KEYS) if row.get(key) is not None), None)
    system = [Message(role="system", content=text_of(row, "system", place))] if row.get("system") else []
    if key is None:
        return system
    if isinstance(row[key], list):
        return system + messages_of(row[key], f"{place}: {key}")
    prompt = text_of(row, key, place)
    if str(row[key]).startswith("\n\nHuman:"):
        return parse_transcript(str(row[key]).rstrip().removesuffix("\n\nAssistant:"))
    if row.get("input"):
        prompt += "\n" + text_of(row, "input", place)
    return [*system, Message(role="user", content=prompt)]


def _side(row: dict[str, Any], side: str, place: str) -> list[Message]:
    value = row[side]
    if isinstance(value, list | dict):
        return messages_of(value if isinstance(value, list) else [value], f"{place}: {side}")
    return [Message(role="assistant", content=text_of(row, side, place))]


def _margin(row: dict[str, Any], place: str) -> float | None:
    """Return the difference of a pair's scores, None if it has none; in a fetched CSV file they are texts."""
    scores = []
    for key in SCORE_KEYS:
        if (value := row.get(key)) is None:
            return None
        try:
            score = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise InputError(f"{place}: {key} should be a number, got {quoted(value)}; fix the row")
        scores.append(score)
    return scores[0] - scores[1]
