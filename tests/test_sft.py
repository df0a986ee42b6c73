"""What SFT learns from: the order of its batches, and where the loss of a judge row lies."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from stages.lib.errors import InputError
from stages.lib.judging import DIGITS, SCORE_PREFIX, judge_request
from stages.lib.models import load_tokenizer
from stages.lib.records import Judgement
from stages.lib.tokenization import encode_choices
from stages.sft import arrange, encode_instruction, encode_judgement, several_passes


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(tiny_base)


def judgement(score: int = 4) -> Judgement:
    return Judgement(
        question_id="j1", category="science", prompt="Why?", response="Because.", score=score, justification="Thin."
    )


def row(name: str, length: int = 1) -> dict[str, Any]:
    return {"name": name, "length": length}


@pytest.mark.parametrize("score", range(6))
def test_the_score_is_learned_at_the_position_that_the_judge_reads(
    tokenizer: PreTrainedTokenizerBase, score: int
) -> None:
    encoded = encode_judgement(tokenizer, judgement(score), "score")
    read, digits = encode_choices(tokenizer, judge_request("Why?", "Because."), SCORE_PREFIX, DIGITS)
    assert encoded["input_ids"] == [*read, digits[score]]
    assert encoded["completion_mask"] == [0] * len(read) + [1]


def test_the_whole_reply_is_learned_where_the_target_is_the_reply(tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = encode_judgement(tokenizer, judgement(4), "reply")
    learned = [i for i, m in zip(encoded["input_ids"], encoded["completion_mask"], strict=True) if m]
    assert tokenizer.decode(learned[:-1]) == "score: 4\nThin."
    assert learned[-1] == tokenizer.eos_token_id


def test_an_instruction_is_learned_with_its_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = encode_instruction(tokenizer, "Name a fruit.", "A pear.")
    assert encoded["input_ids"][-1] == tokenizer.eos_token_id
    assert encoded["completion_mask"][-1] == 1
    assert encoded["length"] == len(encoded["input_ids"]) == len(encoded["completion_mask"])


def test_digits_of_several_tokens_are_an_error_that_names_the_setting(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.sft.DIGITS", ("0", "one hundred", "2", "3", "4", "5"))
    with pytest.raises(InputError, match=r"sft\.eft_target: .*use `reply`"):
        encode_judgement(tokenizer, judgement(), "score")


@given(st.integers(1, 30), st.floats(0, 4), st.integers(0, 5))
def test_every_question_stands_as_often_as_there_are_passes(count: int, passes: float, seed: int) -> None:
    times = Counter(several_passes(range(count), passes, seed))
    assert times.total() == round(passes * count)
    assert {times[question] for question in range(count)} <= {int(passes), int(passes) + 1}


@given(st.integers(0, 20), st.integers(1, 6), st.integers(1, 7), st.integers(0, 5))
def test_no_row_is_lost_and_a_batch_holds_one_kind_until_the_last_rows(
    instructions: int, questions: int, batch_size: int, seed: int
) -> None:
    ift = [row(f"i{n}", n % 7) for n in range(instructions)]
    eft = [[row(f"j{q}.{n}") for n in range(5)] for q in range(questions)]
    rows = arrange(ift, eft, batch_size, seed)
    assert Counter(r["name"] for r in rows) == Counter(r["name"] for group in [ift, *eft] for r in group)
    whole = instructions // batch_size + 5 * questions // batch_size
    for first in range(0, whole * batch_size, batch_size):
        assert len({r["name"][0] for r in rows[first : first + batch_size]}) == 1


def test_the_responses_of_a_question_are_one_batch() -> None:
    rows = arrange([], [[row(f"{q}.{n}") for n in range(5)] for q in "abc"], 5, 0)
    assert [{r["name"][0] for r in rows[first : first + 5]} for first in (0, 5, 10)] != [set("abc")] * 3
    assert all(len({r["name"][0] for r in rows[first : first + 5]}) == 1 for first in (0, 5, 10))
