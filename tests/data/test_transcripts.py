import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.core.rows import Message, PreferencePair, Transcript, read_rows
from align.data.conversations import Unusable
from align.data.transcripts import parse_pair, parse_transcript
from tests.committed import COMMITTED

CONTEXT = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: How are you?"


def pair(chosen: str, rejected: str) -> PreferencePair:
    return parse_pair("p", Transcript(chosen=chosen, rejected=rejected))


def test_a_conversation_of_several_turns_is_split_at_its_speakers() -> None:
    assert parse_transcript(CONTEXT + "\n\nAssistant: Fine,\n\nand you?") == [
        Message(role="user", content="Hi"),
        Message(role="assistant", content="Hello."),
        Message(role="user", content="How are you?"),
        Message(role="assistant", content="Fine,\n\nand you?"),
    ]


@pytest.mark.parametrize(
    "text", ["The Human: label", "one\nHuman: two", "one\n\n Human: two", "one\n\nhuman: two", "one\n\nHumans: two"]
)
def test_a_speaker_that_does_not_start_a_paragraph_is_text(text: str) -> None:
    assert parse_transcript(f"\n\nHuman: {text}") == [Message(role="user", content=text)]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "must start with"),
        ("Hello", "must start with"),
        ("Human: one newline is not enough", "must start with"),
        ("preface\n\nHuman: Hi", "must start with"),
        ("\n\nAssistant: Hi", "must start with"),
        ("\n\nHuman: Hi\n\nHuman: again", "turn 2 is by Human; turns must alternate, so expected Assistant"),
        (
            "\n\nHuman: Hi\n\nAssistant: a\n\nAssistant: b",
            "turn 3 is by Assistant; turns must alternate, so expected Human",
        ),
        ("\n\nHuman: \n\nAssistant: a", "turn 1 (Human) is empty"),
        ("\n\nHuman: Hi\n\nAssistant:", "turn 2 (Assistant) is empty"),
        ("\n\nHuman: Hi\n\nAssistant: \n ", "turn 2 (Assistant) is empty"),
    ],
)
def test_a_malformed_transcript_is_an_error(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)):
        parse_transcript(text)


def test_a_pair_is_one_conversation_and_two_replies() -> None:
    parsed = pair(CONTEXT + "\n\nAssistant: Fine.", CONTEXT + "\n\nAssistant: Go away.")
    assert parsed == PreferencePair(
        id="p",
        messages=[
            Message(role="user", content="Hi"),
            Message(role="assistant", content="Hello."),
            Message(role="user", content="How are you?"),
        ],
        chosen="Fine.",
        rejected="Go away.",
    )


@pytest.mark.parametrize(
    ("chosen", "rejected", "complaint"),
    [
        pytest.param(
            CONTEXT + "\n\nAssistant: Fine.",
            CONTEXT.replace("Hello", "Yes?") + "\n\nAssistant: Bad.",
            '"chosen" and "rejected" differ before the last reply',
            id="other words earlier",
        ),
        pytest.param(
            CONTEXT + "\n\nAssistant: Fine.",
            "\n\nHuman: Hi\n\nAssistant: Bad.",
            '"chosen" and "rejected" differ before the last reply',
            id="fewer turns",
        ),
        pytest.param(
            CONTEXT + "\n\nAssistant: Fine.",
            CONTEXT + "\n\nAssistant: Fine. \n",
            '"chosen" and "rejected" are equal',
            id="equal but for blanks",
        ),
        pytest.param(CONTEXT, CONTEXT + "\n\nAssistant: a", '"chosen" ends with a human turn', id="chosen ends human"),
        pytest.param(
            CONTEXT + "\n\nAssistant: a", CONTEXT, '"rejected" ends with a human turn', id="rejected ends human"
        ),
        pytest.param(
            CONTEXT + "\n\nAssistant: a",
            CONTEXT + "\n\nAssistant:",
            '"rejected" turn 4 (Assistant) is empty',
            id="empty",
        ),
    ],
)
def test_a_pair_that_compares_no_two_replies_is_an_error(chosen: str, rejected: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(complaint)}"):
        pair(chosen, rejected)


# Text of a turn: any, with nothing that begins a turn.
TURN = st.text(min_size=1, max_size=40).filter(
    lambda text: text.strip() and not re.search(r"\n\n(Human|Assistant):", f"\n\n{text}")
)


@given(context=st.lists(st.tuples(TURN, TURN), max_size=3), question=TURN, chosen=TURN, rejected=TURN)
def test_a_parsed_pair_written_back_is_the_transcript_but_for_blanks(
    context: list[tuple[str, str]], question: str, chosen: str, rejected: str
) -> None:
    opening = "".join(f"\n\nHuman: {asked}\n\nAssistant: {said}" for asked, said in context)
    opening += f"\n\nHuman: {question}\n\nAssistant: "
    if chosen.strip() == rejected.strip():
        with pytest.raises(Unusable, match="are equal"):
            pair(opening + chosen, opening + rejected)
        return
    parsed = pair(opening + chosen, opening + rejected)
    roles = ["user", "assistant"] * len(parsed.messages)
    assert [message.role for message in parsed.messages] == roles[: 2 * len(context) + 1]
    assert written(parsed, parsed.chosen) == squeezed(opening + chosen)
    assert written(parsed, parsed.rejected) == squeezed(opening + rejected)


def test_every_pair_of_the_seed_data_written_back_is_the_transcript() -> None:
    rows = read_rows(COMMITTED / "data/seed/preferences.jsonl", Transcript)
    assert len(rows) > 300
    for row in rows:
        parsed = pair(row.chosen, row.rejected)
        assert written(parsed, parsed.chosen) == squeezed(row.chosen)
        assert written(parsed, parsed.rejected) == squeezed(row.rejected)


def written(parsed: PreferencePair, reply: str) -> str:
    """Return the transcript of a parsed conversation: nothing of the original may be lost but blanks at turns' ends."""
    speakers = {"user": "Human", "assistant": "Assistant"}
    turns = [*((message.role, message.content) for message in parsed.messages), ("assistant", reply)]
    return squeezed("".join(f"\n\n{speakers[role]}: {content}" for role, content in turns))


def squeezed(text: str) -> str:
    return "".join(text.split())
