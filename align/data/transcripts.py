"""Anthropic's hh-rlhf transcripts, `\\n\\nHuman: ...\\n\\nAssistant: ...`, parsed into conversations."""

import re

from align.core.rows import Message, PreferencePair, Transcript
from align.data.conversations import Unusable

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def parse_transcript(text: str) -> list[Message]:
    """Split a transcript into its turns, which alternate and start with a human one.

    A turn starts at a blank line followed by `Human:` or `Assistant:`; the same words inside a line are text.
    """
    head, *parts = _TURN.split(text.replace("\r\n", "\n"))
    if head.strip() or not parts or parts[0] != "Human":
        raise Unusable("no human turn first", r'must start with "\n\nHuman: "')
    speakers, contents = parts[::2], [content.strip() for content in parts[1::2]]
    for number, (speaker, content) in enumerate(zip(speakers, contents, strict=True), 1):
        expected = ("Human", "Assistant")[(number - 1) % 2]
        if speaker != expected:
            raise Unusable(
                "turns do not alternate", f"turn {number} is by {speaker}; turns must alternate, so expected {expected}"
            )
        if not content:
            reason = "empty last turn" if number == len(contents) else "empty turn before the last"
            raise Unusable(reason, f"turn {number} ({speaker}) is empty")
    return [Message(role=_ROLES[s], content=c) for s, c in zip(speakers, contents, strict=True)]  # type: ignore[arg-type]


def parse_pair(row_id: str, transcript: Transcript) -> PreferencePair:
    """Turn a pair of transcripts into a shared conversation and two different replies."""
    sides = {}
    for side in ("chosen", "rejected"):
        try:
            *context, reply = parse_transcript(getattr(transcript, side))
        except Unusable as error:
            raise Unusable(error.reason, f'"{side}" {error}') from None
        if reply.role != "assistant":
            raise Unusable(
                "no reply last", f'"{side}" ends with a human turn; the last turn must be the reply to compare'
            )
        sides[side] = (context, reply.content)
    (context, chosen), (other, rejected) = sides["chosen"], sides["rejected"]
    if context != other:
        raise Unusable("differ before the last reply", '"chosen" and "rejected" differ before the last reply')
    if chosen == rejected:
        raise Unusable("equal replies", '"chosen" and "rejected" are equal')
    return PreferencePair(id=row_id, messages=context, chosen=chosen, rejected=rejected)
