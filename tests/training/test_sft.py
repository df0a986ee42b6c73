"""What SFT learns from: instruction rows, and a share of judge replies among them."""

from pathlib import Path

import pytest

from align.core.rows import Judgement, Message
from align.models.base import load_tokenizer
from align.models.tokenization import encode_prompt
from align.training.sft import encode_instruction
from stages.sft import judge_replies


def test_a_row_is_learned_from_the_reply_to_its_eos(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    row = encode_instruction(tokenizer, [Message(role="user", content="Name a fruit.")], "A pear.")
    learned = [i for i, m in zip(row["input_ids"], row["completion_mask"], strict=True) if m]
    assert tokenizer.decode(learned[:-1]) == "A pear."
    assert learned[-1] == tokenizer.eos_token_id
    assert row["length"] == len(row["input_ids"]) == len(row["completion_mask"])


def test_a_later_reply_is_learned_after_the_whole_conversation_as_the_model_will_see_it(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    messages = [Message(role="system", content="Be short."), Message(role="user", content="Hi.")]
    messages.append(Message(role="assistant", content="Hello."))
    messages.append(Message(role="user", content="Name a fruit."))
    row = encode_instruction(tokenizer, messages, "A pear.")
    prompt = encode_prompt(tokenizer, messages)
    assert row["input_ids"][: len(prompt)] == prompt
    assert row["completion_mask"] == [0] * len(prompt) + [1] * (len(row["input_ids"]) - len(prompt))
    assert "Be short." in tokenizer.decode(prompt)


JUDGEMENTS = [
    Judgement(question_id=f"q{i}", category="c", prompt="p", response=f"r{i}", score=i % 6) for i in range(50)
]


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.25, 10), (0.5, 30), (0.6, 45), (0.9, 50)])
def test_judge_replies_make_up_the_given_share_of_the_rows_as_far_as_there_are_any(share: float, expected: int) -> None:
    drawn = judge_replies(JUDGEMENTS, 30, share, seed=1)
    assert len(drawn) == len({row.response for row in drawn}) == expected
    assert drawn == judge_replies(JUDGEMENTS, 30, share, seed=1)
