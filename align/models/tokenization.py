"""Text to token ids, the same way in every stage: chat template once, then the completion, then one EOS."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from align.core.errors import InputError, quoted
from align.core.rows import FinishReason, Message

T = TypeVar("T")


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], reply_prefix: str = "") -> list[int]:
    """Return the ids of a conversation up to where the assistant's reply starts, or just after `reply_prefix`.

    The template writes the special tokens (one BOS at most); the tokenizer adds none.
    """
    try:
        text = _rendered(tokenizer, [message.model_dump() for message in messages])
    except TemplateError as error:  # some raise one about a system message, or about roles that do not alternate
        roles = ", ".join(message.role for message in messages)
        raise InputError(
            f"the chat template takes no conversation of {roles} ({error}): {quoted(messages[-1].content)}; change the "
            "data, or set base_model.chat_template, for example to chatml"
        ) from None
    if reply_prefix:
        text += _reply_start(tokenizer, str(tokenizer.chat_template))[1] + reply_prefix
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def encode_user(tokenizer: PreTrainedTokenizerBase, text: str, reply_prefix: str = "") -> list[int]:
    """Return the ids of a conversation that consists of one user turn."""
    return encode_prompt(tokenizer, [Message(role="user", content=text)], reply_prefix)


def encode_completion(tokenizer: PreTrainedTokenizerBase, text: str, finish_reason: FinishReason = "stop") -> list[int]:
    """Return the ids of a reply, with one EOS unless it was cut off; special tokens written in it are plain text.

    They are those that the reply has where the template puts it, behind `encode_prompt`.
    """
    anchor, separator = _reply_start(tokenizer, str(tokenizer.chat_template))
    ids = _encode_after(tokenizer, anchor, separator + text)
    if ids is None:  # what begins the reply and what is before it are one token: then they are two here
        ids = _encode_after(tokenizer, "", separator + text) or []
    assert tokenizer.eos_token_id is not None
    return [*ids, tokenizer.eos_token_id] if finish_reason == "stop" else ids


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer begins a text with a BOS by itself: its model has seen none without."""
    first = tokenizer("a")["input_ids"][:1]
    return tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id]


@lru_cache(maxsize=16)
def _reply_start(tokenizer: PreTrainedTokenizerBase, template: str) -> tuple[str, str]:
    """Return what a reply has before it: (the text that its ids depend on, what the template writes in between).

    Tokenizers in SentencePiece's manner put a mark of a blank before a text, but not in the midst of one. There "Yes"
    has other ids alone than after the newline that ends ChatML's prompt: it is encoded after that character, whose ids
    are taken off again. For other tokenizers that text is empty. A template like Mistral's has a blank in between.
    """
    probe = [{"role": "user", "content": "a"}]
    try:
        prompt = _rendered(tokenizer, probe)
        whole = _rendered(tokenizer, [*probe, {"role": "assistant", "content": "Yes"}], add_generation_prompt=False)
    except (TemplateError, ValueError):  # no template, or one that wants more; `encode_prompt` says what
        return "", ""
    separator, found, _ = whole[len(prompt) :].partition("Yes")
    if not (whole.startswith(prompt) and found):  # what is said about the reply is not what it is said after
        separator = ""
    ids, extended = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, prompt + separator + "Yes")
    )
    for anchor in ("", prompt[-1:]):
        if extended == ids + (_encode_after(tokenizer, anchor, separator + "Yes") or []):
            return anchor, separator
    return "", separator


def _rendered(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], add_generation_prompt: bool = True
) -> str:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    assert isinstance(text, str)
    return text


def _encode_after(tokenizer: PreTrainedTokenizerBase, anchor: str, text: str) -> list[int] | None:
    """Return the ids of plain text after `anchor`, without its ids; None if the two share a token."""
    before, ids = (
        tokenizer(part, add_special_tokens=False, split_special_tokens=True)["input_ids"] if part else []
        for part in (anchor, anchor + text)
    )
    return ids[len(before) :] if ids[: len(before)] == before else None


def encode_choices(
    tokenizer: PreTrainedTokenizerBase, prompt: str, prefix: str, choices: Sequence[str]
) -> tuple[list[int], list[int]]:
    """Return the ids of a user turn with the reply begun by `prefix`, and for each choice the one token that is next.

    Tokenizers differ in where the space of "score: 4" goes: the choices are encoded in place, and what they share is
    the prompt.

    Raises:
        ValueError: a choice is not exactly one token of its own in this place.
    """
    encoded = [encode_user(tokenizer, prompt, prefix + choice) for choice in choices]
    shared = 0
    while shared < min(map(len, encoded)) and len({ids[shared] for ids in encoded}) == 1:
        shared += 1
    tokens = [ids[shared:] for ids in encoded]
    if any(len(token) != 1 for token in tokens) or len({token[0] for token in tokens}) < len(choices):
        raise ValueError(f"after {prefix!r} this tokenizer does not write each of {', '.join(choices)} as one token")
    return encoded[0][:shared], [token[0] for token in tokens]


def drop_too_long(rows: Sequence[T], lengths: Sequence[int], limit: int, key: str) -> tuple[list[T], int]:
    """Return the rows of at most `limit` tokens, and how many were longer: dropped whole, never cut in silence.

    Raises:
        InputError: no row is left; the message names `key`, the param to raise.
    """
    kept = [row for row, length in zip(rows, lengths, strict=True) if length <= limit]
    if not kept:
        raise InputError(f"params.yaml: {key}: all {len(rows)} rows are longer than {limit} tokens; raise it")
    return kept, len(rows) - len(kept)
