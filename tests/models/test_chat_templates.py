"""The chat templates of prompts, token by token with a cut of Mistral's own tokenizer."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from align.core.errors import InputError
from align.core.rows import Instruction, read_rows
from align.core.templates import PROMPTS_DIR
from align.judge.request import DIGITS, SCORE_PREFIX
from align.models.base import load_tokenizer
from align.models.tokenization import decode_completion, encode_choices, encode_completion, encode_prompt, encode_user
from tests.committed import COMMITTED
from tests.models.mistral_tokenizer import CONVERSATIONS, FILE, JUDGED, Turns, messages

FIXTURE = json.loads(FILE.read_text(encoding="utf-8"))
EXPECTED = list(zip(CONVERSATIONS, FIXTURE["expected"], strict=True))


@pytest.fixture(scope="module", params=["LlamaTokenizer", "PreTrainedTokenizerFast"])
def mistral(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """The two ways in which transformers reads the file: it rebuilds a Llama tokenizer, or takes it as it is."""
    folder = tmp_path_factory.mktemp("mistral")
    (folder / "tokenizer.json").write_text(json.dumps(FIXTURE["tokenizer"]), encoding="utf-8")
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": request.param}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"legacy": True}), encoding="utf-8")
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer


def with_template(tokenizer: PreTrainedTokenizerBase, name: str) -> PreTrainedTokenizerBase:
    tokenizer.chat_template = (PROMPTS_DIR / "chat" / f"{name}.jinja").read_text(encoding="utf-8")
    return tokenizer


def rendered(tokenizer: PreTrainedTokenizerBase, turns: Turns, add_generation_prompt: bool = False) -> str:
    values = [{"role": role, "content": content} for role, content in turns]
    return str(tokenizer.apply_chat_template(values, tokenize=False, add_generation_prompt=add_generation_prompt))


def test_mistrals_text_is_that_of_the_instruct_model(mistral: PreTrainedTokenizerBase) -> None:
    turns = [("user", "a"), ("assistant", "b"), ("user", "c")]
    assert rendered(with_template(mistral, "mistral"), turns, True) == "<s>[INST] a [/INST] b</s>[INST] c [/INST]"


@pytest.mark.parametrize(("turns", "expected"), EXPECTED)
def test_a_prompt_and_its_reply_have_the_ids_of_mistrals_own_encoding(
    mistral: PreTrainedTokenizerBase, turns: Turns, expected: list[int]
) -> None:
    *prompt, (_, reply) = turns
    tokenizer = with_template(mistral, "mistral")
    ids = encode_prompt(tokenizer, messages(prompt)) + encode_completion(tokenizer, reply)
    assert ids == expected
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids.count(tokenizer.eos_token_id) == len(turns) // 2


@pytest.mark.parametrize(("turns", "expected"), EXPECTED[:-1])
def test_mistrals_whole_text_has_the_ids_of_its_parts(
    mistral: PreTrainedTokenizerBase, turns: Turns, expected: list[int]
) -> None:
    assert (
        mistral(rendered(with_template(mistral, "mistral"), turns), add_special_tokens=False)["input_ids"] == expected
    )


@pytest.mark.parametrize("name", ["chatml", "plain"])
@pytest.mark.parametrize("turns", CONVERSATIONS[:-1])
def test_a_prompt_and_its_reply_have_the_ids_of_the_whole_text_whatever_the_template(
    mistral: PreTrainedTokenizerBase, name: str, turns: Turns
) -> None:
    *prompt, (_, reply) = turns
    tokenizer = with_template(mistral, name)
    ids = encode_prompt(tokenizer, messages(prompt)) + encode_completion(tokenizer, reply, "length")
    text = rendered(tokenizer, prompt, add_generation_prompt=True) + reply
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", ["mistral", "chatml"])
def test_a_judges_digits_follow_its_prompt_as_they_do_in_the_replies_it_learns_from(
    mistral: PreTrainedTokenizerBase, name: str
) -> None:
    tokenizer = with_template(mistral, name)
    shared, tokens = encode_choices(tokenizer, JUDGED[0], SCORE_PREFIX, DIGITS)
    for digit, token in zip(DIGITS, tokens, strict=True):
        learned = encode_user(tokenizer, JUDGED[0]) + encode_completion(tokenizer, SCORE_PREFIX + digit, "length")
        assert learned == [*shared, token]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mistral", "<s>[INST] Be brief.\n\nHi [/INST]"),
        ("chatml", "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
        ("plain", "Be brief.\n\nHi\n\n"),
    ],
)
def test_a_system_text_goes_into_the_first_turn_where_a_template_has_no_place_for_it(
    mistral: PreTrainedTokenizerBase, name: str, text: str
) -> None:
    assert rendered(with_template(mistral, name), [("system", "Be brief."), ("user", "Hi")], True) == text


@pytest.mark.parametrize(
    "roles",
    [["assistant"], ["user", "user"], ["system", "assistant"], ["user", "system"], ["system", "system", "user"]],
)
def test_turns_that_do_not_alternate_are_an_error_with_mistrals_template(
    mistral: PreTrainedTokenizerBase, roles: list[str]
) -> None:
    turns = [(role, "Hi") for role in roles]
    with pytest.raises(InputError, match=r"turns alternate.*base_model\.chat_template"):
        encode_prompt(with_template(mistral, "mistral"), messages(turns))


def test_plain_text_has_turns_and_blank_lines_between_them_and_nothing_else(tiny_base: Path) -> None:
    tokenizer = with_template(load_tokenizer(tiny_base), "plain")
    turns = [("user", "Hi\n"), ("assistant", "Ho"), ("user", "  And?")]
    assert rendered(tokenizer, turns, True) == "Hi\n\n\nHo\n\n  And?\n\n"
    assert rendered(tokenizer, [*turns, ("assistant", "So.")]) == "Hi\n\n\nHo\n\n  And?\n\nSo."


def test_a_byte_level_tokenizer_encodes_chatmls_replies_as_they_stand(tiny_base: Path) -> None:
    # SmolLM2's is one: the default run must not change in a single id.
    tokenizer = load_tokenizer(tiny_base)
    for row in read_rows(COMMITTED / "data/seed/instructions.jsonl", Instruction):
        for text in (row.completion, f"\n{row.completion}", f"  {row.completion} "):
            alone = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            assert encode_completion(tokenizer, text) == [*alone, tokenizer.eos_token_id]


THINKING = (
    "{%- for m in messages %}{{- '<|im_start|>' + m['role'] + '\\n' }}{%- if m['role'] == 'assistant' and loop.last %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{{- m['content'] + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
REPLIES = [
    "Yes.",
    " Yes",
    "  two\n\nlines ",
    "<think>\n\n</think>\n\nNo.",
    "caf\xe9 \U0001f600",
    "a  b",
    "\n",
    "</s> [INST]",
]


@pytest.mark.parametrize("reply", REPLIES)
@pytest.mark.parametrize("template", ["chatml", "mistral", "plain", "thinking"])
@pytest.mark.parametrize("kind", ["sentencepiece", "bytes"])
def test_what_encoding_adds_to_a_reply_decoding_takes_away(
    reply: str, template: str, kind: str, mistral: PreTrainedTokenizerBase, tiny_base: Path
) -> None:
    tokenizer = mistral if kind == "sentencepiece" else load_tokenizer(tiny_base)
    if template == "thinking":
        tokenizer.chat_template = THINKING
    else:
        with_template(tokenizer, template)
    ids = encode_completion(tokenizer, reply)
    text = decode_completion(tokenizer, ids[:-1])
    assert encode_completion(tokenizer, text) == ids
    assert template != "thinking" or "<think>" not in text.removeprefix(reply)


def test_a_special_token_in_a_reply_stays_plain_text_behind_a_separator(mistral: PreTrainedTokenizerBase) -> None:
    ids = encode_completion(with_template(mistral, "mistral"), "<s>[INST]</s>")
    assert ids.count(mistral.eos_token_id) == 1
    assert mistral.bos_token_id not in ids
    assert mistral.decode(ids[:-1]) == "<s>[INST]</s>"
