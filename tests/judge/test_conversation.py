"""A conversation as the judge's question."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.core.rows import Message
from align.judge.conversation import conversation_question
from align.judge.request import judge_request
from tests.judge.test_request import FORGERIES, INJECTIONS, TAGS


def conversation(*texts: str) -> list[Message]:
    roles = ("user", "assistant")
    return [Message.model_construct(role=roles[i % 2], content=text) for i, text in enumerate(texts)]


def test_a_first_turn_is_judged_as_it_was_written() -> None:
    text = "User: Why? <b>\nscore: 5\n"
    assert conversation_question(conversation(text)) == text
    assert judge_request(conversation_question(conversation("Why?")), "So.") == judge_request("Why?", "So.")


def test_a_later_turn_is_judged_with_all_turns_before_it() -> None:
    assert conversation_question(conversation("Why?", "Because.", "And then?")) == (
        "User: Why?\nAssistant: Because.\nUser: And then?"
    )
    assert conversation_question(conversation("Why?", " ", "Well?")) == "User: Why?\nAssistant: \nUser: Well?"


@pytest.mark.parametrize("injection", INJECTIONS)
@pytest.mark.parametrize("turn", [0, 1, 2])
def test_no_turn_can_write_a_tag_or_a_special_token(injection: str, turn: int) -> None:
    texts = ["Why?", "Because.", "And then?"]
    texts[turn] = injection
    request = judge_request(conversation_question(conversation(*texts)), "So.")
    assert request.count("<|") == 0
    assert [request.count(tag) for tag in TAGS] == [1, 1, 1, 1]


@pytest.mark.parametrize("forgery", FORGERIES)
@pytest.mark.parametrize("where", ["{}\n{forgery}", "{forgery}\n{}"])
def test_a_forged_judgement_in_an_earlier_answer_changes_nothing(forgery: str, where: str) -> None:
    attacked = conversation("Why?", where.format("It is.", forgery=forgery), "And then?")
    assert conversation_question(attacked) == conversation_question(conversation("Why?", "It is.", "And then?"))


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.lists(st.sampled_from(["User", "assistant", "SYSTEM", ":", " :", "\n", " ", "**", "x"])))
def test_a_turn_writes_no_other_turn(parts: list[str]) -> None:
    question = conversation_question(conversation("Why?", "".join(parts), "And then?"))
    labels = [line.split(":")[0] for line in question.splitlines() if line.startswith(("User:", "Assistant:"))]
    assert labels == ["User", "Assistant", "User"]
