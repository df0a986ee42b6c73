"""Text to token ids, the same way in every stage: the chat template, the completion, one EOS."""

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import click
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from align.core.errors import InputError, quoted
from align.core.rows import FinishReason, Instruction, Message, read_rows
from align.models.batching import common_prefix

T = TypeVar("T")


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], reply_prefix: str = "") -> list[int]:
    """Return the ids of a conversation up to the start of the assistant's reply, or to the end of `reply_prefix`.

    Special tokens come from the template; the tokenizer adds none.
    """
    try:
        text = _rendered(tokenizer, [message.model_dump() for message in messages])
    except TemplateError as error:  # for example about a system message, or roles that do not alternate
        roles = ", ".join(message.role for message in messages)
        raise InputError(
            f"the chat template rejects a conversation of {roles} ({error}): {quoted(messages[-1].content)}; change "
            "the data, or set base_model.chat_template, for example to chatml"
        ) from None
    if reply_prefix:
        text += _reply_start(tokenizer, str(tokenizer.chat_template))[1] + reply_prefix
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def encode_user(tokenizer: PreTrainedTokenizerBase, text: str, reply_prefix: str = "") -> list[int]:
    """Return the ids of a conversation of one user turn."""
    return encode_prompt(tokenizer, [Message(role="user", content=text)], reply_prefix)


def encode_completion(tokenizer: PreTrainedTokenizerBase, text: str, finish_reason: FinishReason = "stop") -> list[int]:
    """Return the ids of a reply as they follow `encode_prompt`, with one EOS unless it was cut off.

    Special tokens in its text are plain text.
    """
    anchor, separator = _reply_start(tokenizer, str(tokenizer.chat_template))
    ids = _encode_after(tokenizer, anchor, separator + text)
    if ids is None:  # one token spans the end of the prompt and the start of the reply: encode them apart
        ids = _encode_after(tokenizer, "", separator + text) or []
    assert tokenizer.eos_token_id is not None
    return [*ids, tokenizer.eos_token_id] if finish_reason == "stop" else ids


def decode_completion(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Return the text of a reply's ids without its EOS: what `encode_completion` adds before it is not part of it.

    Some templates write something before each reply, such as an empty block of thoughts.
    """
    anchor, separator = _reply_start(tokenizer, str(tokenizer.chat_template))
    # After other text: at the start of a text SentencePiece drops a blank.
    before = tokenizer(anchor or "a", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    start, whole = (str(tokenizer.decode(part, skip_special_tokens=True)) for part in (before, before + ids))
    return whole.removeprefix(start).removeprefix(separator)


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer starts texts with a BOS, so that its model expects one."""
    first = tokenizer("a")["input_ids"][:1]
    return tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id]


def reply_end(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what the chat template writes after a reply; "" if it rejects a conversation of one."""
    probe = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "Yes"}]
    try:
        return _rendered(tokenizer, probe, add_generation_prompt=False).rpartition("Yes")[2]
    except (TemplateError, ValueError):
        return ""


@lru_cache(maxsize=16)
def _reply_start(tokenizer: PreTrainedTokenizerBase, template: str) -> tuple[str, str]:
    """Return (the end of the prompt that the reply's ids depend on, what the template writes between prompt and reply).

    SentencePiece tokenizers put a blank mark before a text, but not inside one. So "Yes" alone has other ids than after
    the newline that ends ChatML's prompt: encode it after that newline, then remove the newline's ids. For other
    tokenizers the first text is empty. The second is a blank in templates like Mistral's.
    """
    probe = [{"role": "user", "content": "a"}]
    try:
        prompt = _rendered(tokenizer, probe)
        whole = _rendered(tokenizer, [*probe, {"role": "assistant", "content": "Yes"}], add_generation_prompt=False)
    except (TemplateError, ValueError):  # no template, or one that rejects this; `encode_prompt` reports why
        return "", ""
    separator, reply, _ = whole[len(prompt) :].partition("Yes")
    if not (whole.startswith(prompt) and reply):  # the template writes a reply elsewhere than after the prompt
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
    """Return the ids of plain `text` after `anchor`, without those of `anchor`; None if the two share a token."""
    before, ids = (
        tokenizer(part, add_special_tokens=False, split_special_tokens=True)["input_ids"] if part else []
        for part in (anchor, anchor + text)
    )
    return ids[len(before) :] if ids[: len(before)] == before else None


def encode_choices(
    tokenizer: PreTrainedTokenizerBase, prompt: str, prefix: str, choices: Sequence[str]
) -> tuple[list[int], list[int]]:
    """Return the ids of a user turn with a reply that starts with `prefix`, and the next token for each choice.

    Tokenizers differ in where the space of "score: 4" goes, so the choices are encoded in place.

    Raises:
        ValueError: a choice is not exactly one token of its own.
    """
    encoded = [encode_user(tokenizer, prompt, prefix + choice) for choice in choices]
    shared = common_prefix(encoded)
    tokens = [ids[shared:] for ids in encoded]
    if any(len(token) != 1 for token in tokens) or len({token[0] for token in tokens}) < len(choices):
        raise ValueError(f"after {prefix!r} this tokenizer does not encode each of {', '.join(choices)} as one token")
    return encoded[0][:shared], [token[0] for token in tokens]


def drop_too_long(rows: Sequence[T], lengths: Sequence[int], limit: int, key: str) -> tuple[list[T], int]:
    """Return the rows of at most `limit` tokens, and the number of longer ones, which are dropped whole.

    Raises:
        InputError: no row is left; `key` is the param to raise.
    """
    kept = [row for row, length in zip(rows, lengths, strict=True) if length <= limit]
    if not kept:
        raise InputError(f"params.yaml: {key}: all {len(rows)} rows are longer than {limit} tokens; raise it")
    return kept, len(rows) - len(kept)


def completion_lengths(tokenizer: PreTrainedTokenizerBase, path: Path) -> list[int]:
    """Return the tokens of each completion of an IFT file, with the EOS."""
    return [len(encode_completion(tokenizer, row.completion)) for row in read_rows(path, Instruction)]


def warn_if_capped(key: str, cap: int, lengths: Sequence[int], path: Path) -> None:
    """Print a warning if more than a tenth of the completions that a model learned to write are longer than its cap.

    Args:
        key: the param that is the cap, such as `ppo.max_new_tokens`.
        cap: its value, in tokens.
        lengths: tokens of each completion, with the EOS.
        path: the file with these completions.
    """
    enough = sorted(lengths)[math.ceil(0.9 * len(lengths)) - 1] if lengths else 0
    if cap < enough:
        longer = sum(length > cap for length in lengths) / len(lengths)
        click.echo(
            f"warning: {key} is {cap}: {longer:.0%} of the completions in {path} are longer, which the model was "
            f"trained to write; raise it to {enough} (their 90th percentile)"
        )
