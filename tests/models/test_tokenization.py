"""Text to ids: the template's own text, one BOS, one EOS, and nothing else."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from align.core.errors import InputError
from align.core.rows import Message
from align.models.base import load_tokenizer
from align.models.tokenization import drop_too_long, encode_choices, encode_completion, encode_prompt, encode_user

DIGITS = ("0", "1", "2", "3", "4", "5")
CONVERSATION = [
    Message(role="system", content="Be brief."),
    Message(role="user", content="What is 2 + 2?"),
    Message(role="assistant", content="4"),
    Message(role="user", content="  And 2 + 3,\nthen? é ☃  "),
]


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(tiny_base)


@pytest.fixture(scope="module")
def mistral() -> PreTrainedTokenizerBase:
    """A tokenizer built as Mistral's is: blanks as marks, one in front of all, a template that writes the BOS."""
    tokenizer = Tokenizer(models.BPE())
    marks = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    tokenizer.normalizer = normalizers.Sequence(marks)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(["[INST] [/INST] Hello there Rate it Score: 0 1 2 3 4 5"], trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    wrapped.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endfor %}"
    )
    return wrapped


def test_a_prompt_is_exactly_the_text_of_the_template(tokenizer: PreTrainedTokenizerBase) -> None:
    expected = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n"
        "<|im_start|>assistant\n4<|im_end|>\n<|im_start|>user\n  And 2 + 3,\nthen? é ☃  <|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert tokenizer.decode(encode_prompt(tokenizer, CONVERSATION)) == expected


def test_the_templates_markers_become_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = encode_prompt(tokenizer, CONVERSATION)
    assert [tokenizer.convert_ids_to_tokens(token) for token in ids].count("<|im_start|>") == 5
    assert ids.count(tokenizer.eos_token_id) == 4


def test_a_reply_prefix_follows_the_template(tokenizer: PreTrainedTokenizerBase) -> None:
    plain, begun = encode_user(tokenizer, "Rate it"), encode_user(tokenizer, "Rate it", "Score: ")
    assert tokenizer.decode(begun) == f"{tokenizer.decode(plain)}Score: "


@pytest.mark.parametrize("text", ["Fine.", "", "  two\n\nlines ", "déjà ☃"])
def test_a_completion_is_its_text_and_one_eos_at_the_end(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = encode_completion(tokenizer, text)
    assert ids[-1] == tokenizer.eos_token_id
    assert ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(ids[:-1]) == text


def test_a_completion_that_was_cut_off_gets_no_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    whole, cut = encode_completion(tokenizer, "Fine, and", "stop"), encode_completion(tokenizer, "Fine, and", "length")
    assert cut == whole[:-1]


def test_rows_over_the_limit_are_dropped_whole_and_counted() -> None:
    assert drop_too_long(["a", "b", "c", "d"], [3, 4, 5, 4], 4, "sft.max_length") == (["a", "b", "d"], 1)
    with pytest.raises(InputError, match=r"sft\.max_length: all 2 rows are longer than 4 tokens"):
        drop_too_long(["a", "b"], [5, 6], 4, "sft.max_length")


def test_special_tokens_written_in_a_completion_stay_plain_text(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "stop<|im_end|>\n<|im_start|>user\n<|endoftext|>"
    ids = encode_completion(tokenizer, text)
    assert not set(ids[:-1]) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids[:-1]) == text


def test_a_prompt_and_its_completion_make_the_conversation(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = encode_prompt(tokenizer, CONVERSATION) + encode_completion(tokenizer, "5")
    whole = encode_prompt(tokenizer, [*CONVERSATION, Message(role="assistant", content="5")])
    assert whole[: len(ids)] == ids


@pytest.mark.parametrize("prefix", ["Score: ", "Score:", ""])
def test_the_shared_prompt_and_a_choice_are_the_ids_of_the_whole_text(
    tokenizer: PreTrainedTokenizerBase, prefix: str
) -> None:
    shared, tokens = encode_choices(tokenizer, "Rate it", prefix, DIGITS)
    for choice, token in zip(DIGITS, tokens, strict=True):
        assert [*shared, token] == encode_user(tokenizer, "Rate it", prefix + choice)


@pytest.mark.parametrize("choices", [("9", "10"), ("10", "20"), ("1", "10"), ("1", "1"), ("1", "2", "2")])
def test_a_choice_that_is_not_one_token_of_its_own_is_an_error(
    tokenizer: PreTrainedTokenizerBase, choices: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError, match=f"{', '.join(choices)} as one token"):
        encode_choices(tokenizer, "Rate it", "Score: ", choices)


def test_a_template_that_writes_the_bos_gets_no_second_one(mistral: PreTrainedTokenizerBase) -> None:
    ids = encode_user(mistral, "Hello there")
    assert mistral.decode(ids) == "<s> [INST] Hello there [/INST]"
    assert ids.count(mistral.bos_token_id) == 1
    assert ids[0] == mistral.bos_token_id


@pytest.mark.parametrize("prefix", ["Score: ", "Score:"])
def test_digits_are_choices_for_a_tokenizer_with_leading_space_marks(
    mistral: PreTrainedTokenizerBase, prefix: str
) -> None:
    shared, tokens = encode_choices(mistral, "Rate it", prefix, DIGITS)
    assert len(set(tokens)) == len(DIGITS)
    for choice, token in zip(DIGITS, tokens, strict=True):
        assert [*shared, token] == encode_user(mistral, "Rate it", prefix + choice)
        assert str(mistral.decode([*shared, token])).endswith(prefix + choice)
