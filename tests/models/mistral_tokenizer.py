"""A cut of the tokenizer of mistralai/Mistral-7B-Instruct-v0.2 (Apache-2.0), and what the whole makes of some texts.

mistral_tokenizer.json was written by `python -m tests.models.mistral_tokenizer FOLDER`, where FOLDER holds the whole
tokenizer.json. It keeps, with their ids, the pieces that occur in the texts of the tests (and in JUDGED) and the merges
that make them: no other merge can take part, so the texts have the ids of the whole tokenizer. `expected` has them for
each of CONVERSATIONS in the way of Mistral's own code: each turn and each reply encoded for itself, then put together.
"""

import json
import sys
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from align.core.files import write_text
from align.core.rows import Message
from align.judge.request import SCORE_PREFIX, judge_request

FILE = Path(__file__).parent / "mistral_tokenizer.json"
MARK = "\u2581"  # stands for a blank

Turns = list[tuple[str, str]]
# Each ends with a reply. Roles are those of chat templates.
CONVERSATIONS: list[Turns] = [
    [("user", "What is 2 + 2?"), ("assistant", "4")],
    [("user", "Hi there"), ("assistant", "Yes, sure."), ("user", "And  then?\n"), ("assistant", "  Two\n\nlines ")],
    [("user", "déjà ☃"), ("assistant", "\nA new line first, then 😀.")],
    [("user", "Name a fruit."), ("assistant", " A pear, with a blank before it.")],
    [("system", "Be brief."), ("user", "Hi there"), ("assistant", "Yes?"), ("user", "Go on."), ("assistant", "No.")],
    [("user", "What is it for?"), ("assistant", "<code>]x[/INST]</s>")],
]
JUDGED = [judge_request("Name a fruit.", "A pear."), *(f"{SCORE_PREFIX}{score}" for score in range(6))]
CHATML = ["<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"]


def messages(turns: Turns) -> list[Message]:
    """Return a conversation as the stages take it."""
    return [Message.model_validate({"role": role, "content": content}) for role, content in turns]


def cut(whole: dict[str, Any]) -> dict[str, Any]:
    """Return `tokenizer.json` without the pieces and merges that the texts do not need."""
    parts = [f"[INST] {text} [/INST] {text}" for turns in CONVERSATIONS for _, text in turns]
    parts += [f"[INST] {text} [/INST] {text}" for text in JUDGED] + CHATML
    text = "\n".join(f"{MARK}{part}" for part in parts + [text for turns in CONVERSATIONS for _, text in turns])
    text = text.replace(" ", MARK) + MARK
    model = whole["model"]
    special = {token["content"] for token in whole["added_tokens"]}
    kept = {piece: i for piece, i in model["vocab"].items() if piece in text or piece in special or piece[:3] == "<0x"}
    pairs = [merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"]]
    merges = [pair for pair in pairs if "".join(pair) in kept and pair[0] in kept and pair[1] in kept]
    return whole | {"truncation": None, "padding": None, "model": model | {"vocab": kept, "merges": merges}}


def reference(tokenizer: Tokenizer, turns: Turns) -> list[int]:
    """Return the ids of a conversation: one BOS, each user turn between its markers, each reply and its EOS."""

    def plain(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    system = f"{turns[0][1]}\n\n" if turns[0][0] == "system" else ""
    [bos], [eos] = plain("<s>"), plain("</s>")
    ids = [bos]
    for number, (role, text) in enumerate(turns[1:] if system else turns):
        if role == "user":
            ids += plain(f"[INST] {system if number == 0 else ''}{text} [/INST]")
        else:
            ids += [*plain(text), eos]
    return ids


def main(folder: Path) -> None:
    whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_str(json.dumps(whole | {"truncation": None, "padding": None}))
    tokenizer.encode_special_tokens = True
    expected = [reference(tokenizer, turns) for turns in CONVERSATIONS]
    value = {"expected": expected, "tokenizer": cut(whole)}
    write_text(FILE, json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
