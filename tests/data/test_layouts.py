"""Data sets in the layouts that people have: which are read, what of them, and what is said about the rest."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from align.core.errors import InputError
from align.core.rows import Message, PreferencePair
from align.data.instructions import InstructionsFormat, read_instructions
from align.data.preferences import read_preferences

Row = dict[str, Any]


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    def write(*rows: Row) -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


def turns(*said: str, keys: tuple[str, str] = ("role", "content"), **more: Any) -> list[Row]:
    """Return turns of `role: text`."""
    return [dict(zip(keys, text.split(": ", 1), strict=True)) | more for text in said]


def told(messages: list[Message]) -> list[str]:
    return [f"{message.role}: {message.content}" for message in messages]


FRUIT = ["user: Name a fruit.", "assistant: A cherry."]
LONG = ["system: Be short.", *FRUIT, "user: Another.", "assistant: A plum."]
SHAREGPT = ["system: Be short.", "human: Name a fruit.", "gpt: A cherry.", "human: Another.", "gpt: A plum."]
CONVERSATIONS: dict[str, tuple[InstructionsFormat, Row, list[str]]] = {
    "messages": ("messages", {"messages": turns(*LONG)}, LONG),
    "ShareGPT": ("messages", {"conversations": turns(*SHAREGPT, keys=("from", "value"))}, LONG),
    "a system prompt beside the turns": (
        "messages",
        {"system": "Be short.", "conversations": turns(*SHAREGPT[1:], keys=("from", "value"))},
        LONG,
    ),
    "extra keys of turns": ("messages", {"messages": turns(*FRUIT, name=None, tool_calls=None)}, FRUIT),
    "parts": (
        "messages",
        {"messages": [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in turns(*FRUIT)]},
        FRUIT,
    ),
    "other names of roles": ("messages", {"messages": turns("Human: Name a fruit.", "MODEL: A cherry.")}, FRUIT),
    "a last turn without a reply": ("messages", {"messages": turns(*FRUIT, "user: Another.")}, FRUIT),
    "texts of TRL": ("prompt_completion", {"prompt": "Name a fruit.", "completion": "A cherry."}, FRUIT),
    "prompt and response": ("prompt_completion", {"prompt": "Name a fruit.", "response": "A cherry.", "id": 7}, FRUIT),
    "turns of TRL": (
        "prompt_completion",
        {"prompt": turns(*LONG[:-1]), "completion": turns(LONG[-1])},
        LONG,
    ),
    "Alpaca": ("alpaca", {"instruction": "Name a fruit.", "input": "", "output": "A cherry.", "text": "..."}, FRUIT),
    "Alpaca with input": (
        "alpaca",
        {"instruction": "Name it.", "input": "Red, round.", "output": "A cherry."},
        ["user: Name it.\nRed, round.", "assistant: A cherry."],
    ),
    "Alpaca with history": (
        "alpaca",
        {
            "system": "Be short.",
            "history": [["Name a fruit.", "A cherry."]],
            "instruction": "Another.",
            "output": "A plum.",
        },
        LONG,
    ),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("pinned", [False, True])
def test_every_reply_of_a_conversation_is_learned_after_the_turns_before_it(
    name: str, pinned: bool, file: Callable[..., Path]
) -> None:
    layout, row, expected = CONVERSATIONS[name]
    rows, left_out = read_instructions(file(row), layout if pinned else "auto", None)
    assert not left_out
    assert told([*rows[-1].messages, Message(role="assistant", content=rows[-1].completion)]) == expected
    assert [row.completion for row in rows] == [
        text.removeprefix("assistant: ") for text in expected if "assist" in text
    ]
    assert len({row.id for row in rows}) == len(rows)
    for earlier, later in pairwise(rows):
        assert later.messages[: len(earlier.messages)] == earlier.messages


UNUSABLE: dict[str, tuple[list[Row], str]] = {
    "a tool": (turns(*FRUIT, "tool: 12", "assistant: 12."), "a turn of a tool"),
    "a function call": (turns("human: Hi", "function_call: f()", keys=("from", "value")), "a turn of a tool"),
    "null content": (
        [*turns(FRUIT[0]), {"role": "assistant", "content": None, "tool_calls": [{}]}],
        "a turn without text",
    ),
    "no content": ([*turns(FRUIT[0]), {"role": "assistant"}], "a turn without text"),
    "an image": ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "a part of type image_url"),
    "a blank turn": (turns("user: Hi", "assistant:  "), "a blank turn"),
    "an unknown role": (turns("narrator: Once."), "a turn of role narrator"),
    "two user turns": (turns("user: Hi", *FRUIT), "turns do not alternate"),
    "a reply first": (turns("assistant: Hi", *FRUIT), "no user turn first"),
    "a later system message": (turns(*FRUIT, "system: Stop."), "a later system message"),
    "no reply": (turns(FRUIT[0]), "no reply"),
    "a system message alone": (turns("system: Hi"), "no user turn first"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_conversation_that_cannot_be_used_is_left_out_and_counted_not_the_file(
    name: str, file: Callable[..., Path]
) -> None:
    wrong, reason = UNUSABLE[name]
    rows, left_out = read_instructions(
        file(*({"messages": m} for m in (turns(*FRUIT), wrong, turns(*LONG)))), "auto", None
    )
    assert [row.id for row in rows] == ["row-000001", "row-000003.1", "row-000003.2"]
    assert left_out == {reason: 1}
    with pytest.raises(InputError, match=f"has no instruction.*{reason}"):
        read_instructions(file({"messages": wrong}), "messages", None)


def test_keys_that_are_not_read_are_named_once_a_file(
    file: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    read_instructions(file(*[{"messages": turns(*FRUIT), "source": "x", "score": 1}] * 3), "auto", None)
    read_preferences(
        file(
            *[
                {"chosen": f"\n\nHuman: a\n\nAssistant: {n}", "rejected": "\n\nHuman: a\n\nAssistant: b", "tag": 1}
                for n in range(3)
            ]
        )
    )
    err = capfd.readouterr().err
    assert err.count("keys that are not read: 'score', 'source'") == 1
    assert err.count("keys that are not read: 'tag'") == 1
    assert err.count("read as messages (prepare_data.instructions_format)") == 1


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"messages": "hi"}, "messages should be a list of turns, got 'hi'"),
        ({"messages": ["hi"]}, r"messages.0 should be an object with role and content, got 'hi'"),
        ({"messages": [{"content": "x"}]}, r'messages.0 has no text as "role" \(or "from"\), got None'),
        ({"messages": [{"role": "user", "content": 4}]}, "messages.0.content should be a text, got 4"),
        ({"messages": [{"role": "user", "content": [4]}]}, "messages.0.content has the part 4"),
    ],
)
def test_a_key_that_is_read_has_its_type_or_the_row_is_an_error(row: Row, says: str, file: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=rf"rows.jsonl:2: {says}"):
        read_instructions(file({"messages": turns(*FRUIT)}, row), "auto", None)


def test_our_own_format_is_as_strict_as_before_and_names_the_setting_for_another(file: Callable[..., Path]) -> None:
    own = {"id": "i", "category": "c", "prompt": "p", "completion": "q"}
    with pytest.raises(InputError, match='"prompt" should be a valid string, got 4'):
        read_instructions(file(own | {"prompt": 4}), "auto", None)
    with pytest.raises(InputError, match='"note" is not a key'):
        read_instructions(file(own | {"note": 4}), "auto", None)
    with pytest.raises(InputError, match=r'"category" is missing; .*instructions_format to prompt_completion'):
        read_instructions(file({"id": "i", "prompt": "p", "completion": "q"}), "auto", None)
    with pytest.raises(InputError, match=r"rows.jsonl:1: looks like messages; set prepare_data.instructions_format"):
        read_instructions(file({"messages": turns(*FRUIT)}), "instructions", None)
    with pytest.raises(InputError, match=r"rows.jsonl:1: looks like pairs; set prepare_data.preferences_format"):
        read_preferences(file({"prompt": "p", "chosen": "a", "rejected": "b"}), "transcripts")


OTHER = [FRUIT[0], "assistant: A banana."]
GPT = {"keys": ("from", "value")}
PAIRS: dict[str, tuple[Row, list[str]]] = {
    "UltraFeedback": (
        {
            "prompt": "Name a fruit.",
            "chosen": turns(*FRUIT),
            "rejected": turns(*OTHER),
            "score_chosen": 8.5,
            "score_rejected": 3,
        },
        FRUIT,
    ),
    "implicit prompt": ({"chosen": turns(*LONG), "rejected": turns(*LONG[:-1], OTHER[1])}, LONG),
    "texts": ({"prompt": "Name a fruit.", "chosen": "A cherry.", "rejected": "A banana."}, FRUIT),
    "turns and replies": ({"prompt": turns(*LONG[:-1]), "chosen": turns(LONG[-1]), "rejected": turns(OTHER[1])}, LONG),
    "turns and texts": ({"prompt": turns(*LONG[:-1]), "chosen": "A plum.", "rejected": "A banana."}, LONG),
    "LLaMA-Factory's ShareGPT": (
        {
            "conversations": turns(*SHAREGPT[:-1], **GPT),
            "chosen": {"from": "gpt", "value": "A plum."},
            "rejected": {"from": "gpt", "value": "A banana."},
        },
        LONG,
    ),
    "LLaMA-Factory's Alpaca": (
        {"instruction": "Name it.", "input": "Red, round.", "chosen": "A cherry.", "rejected": "A banana."},
        ["user: Name it.\nRed, round.", "assistant: A cherry."],
    ),
    "Orca's": (
        {"system": "Be short.", "question": "Name a fruit.", "chosen": "A cherry.", "rejected": "A banana."},
        ["system: Be short.", *FRUIT],
    ),
    "a system prompt beside whole conversations": (
        {"system": "Be short.", "chosen": turns(*FRUIT), "rejected": turns(*OTHER)},
        ["system: Be short.", *FRUIT],
    ),
    "hh-rlhf with its prompt apart": (
        {"prompt": "\n\nHuman: Name a fruit.\n\nAssistant:", "chosen": " A cherry.", "rejected": " A banana."},
        FRUIT,
    ),
    "hh-rlhf with line ends of Windows": (
        {
            "chosen": "\r\n\r\nHuman: Name a fruit.\r\n\r\nAssistant: A cherry.",
            "rejected": "\r\n\r\nHuman: Name a fruit.\r\n\r\nAssistant: A banana.",
        },
        FRUIT,
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_is_its_conversation_and_two_replies_in_every_layout(name: str, file: Callable[..., Path]) -> None:
    row, expected = PAIRS[name]
    [pair], dropped = read_preferences(file(row | {"extra": 1}))
    assert told(pair.messages) == expected[:-1]
    assert (pair.chosen, pair.rejected) == (expected[-1].removeprefix("assistant: "), "A banana.")
    assert pair.margin == (5.5 if "score_chosen" in row else None)
    assert not dropped


UNUSABLE_PAIRS: dict[str, Row] = {
    "differ before the last reply": {"chosen": turns(*FRUIT), "rejected": turns("user: Hi", "assistant: Hi.")},
    "equal replies": {"chosen": turns(*FRUIT), "rejected": turns(*FRUIT)},
    "no reply last": {"chosen": turns(*FRUIT, "user: More."), "rejected": turns(*FRUIT)},
    "no prompt": {"chosen": turns(FRUIT[1]), "rejected": turns(OTHER[1])},
    "a turn of a tool": {"chosen": turns(FRUIT[0], "tool: 1", FRUIT[1]), "rejected": turns(*OTHER)},
    "no text in rejected": {"prompt": "Hi", "chosen": "A", "rejected": ""},
    "no text in prompt": {"prompt": " ", "chosen": "A", "rejected": "B"},
    "turns do not alternate": {"prompt": turns(*FRUIT), "chosen": "A", "rejected": "B"},
}


@pytest.mark.parametrize("reason", UNUSABLE_PAIRS)
def test_a_pair_that_cannot_be_used_is_an_error_with_its_line_or_counted(
    reason: str, file: Callable[..., Path]
) -> None:
    path = file(PAIRS["UltraFeedback"][0], UNUSABLE_PAIRS[reason])
    pairs, dropped = read_preferences(path, drop=True)
    assert [pair.id for pair in pairs] == ["pref-0001"]
    assert dropped == {reason: 1}
    with pytest.raises(InputError, match=r"rows.jsonl:2: .*prepare_data.unusable_preferences"):
        read_preferences(path)


def test_scores_that_are_no_numbers_and_sides_that_are_missing_are_errors(file: Callable[..., Path]) -> None:
    good = PAIRS["UltraFeedback"][0]
    for wrong in ("high", "nan", True, [1]):
        with pytest.raises(InputError, match=r"rows.jsonl:2: score_chosen should be a number"):
            read_preferences(file(good, good | {"score_chosen": wrong}))
    assert read_preferences(file(good | {"score_chosen": "8.5"}))[0][0].margin == 5.5
    with pytest.raises(InputError, match=r'rows.jsonl:2: "rejected" is missing'):
        read_preferences(file(good, {"chosen": turns(*FRUIT)}))
    with pytest.raises(InputError, match=r'rows.jsonl:1: "chosen" should be a text, got 4'):
        read_preferences(file({"prompt": "Hi", "chosen": 4, "rejected": "B"}), "pairs")


def test_the_first_pairs_are_read_and_no_more(file: Callable[..., Path]) -> None:
    pairs: list[PreferencePair] = read_preferences(file(*[PAIRS["texts"][0]] * 5), limit=3)[0]
    assert [pair.id for pair in pairs] == ["pref-0001", "pref-0002", "pref-0003"]
