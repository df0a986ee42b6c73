"""Broken JSONL: files, lines, rows, transcripts, message trees."""

import gzip
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.faults.broken.workspace import INSTRUCTIONS, JUDGEMENTS, Break, Case, both, line, param, put, row, without

SEED, CHECKED = "data/seed/instructions.jsonl", "data/seed/checked_prompts.jsonl"
OPPOSITE = [{"kind": "lower_case"}, {"kind": "upper_case"}]
SECOND = json.dumps(INSTRUCTIONS[1])
GOOD = json.dumps(INSTRUCTIONS[0])


def _text() -> bytes:
    return Path(SEED).read_bytes()


def _replace(make: Callable[[Path], None], path: str = SEED) -> Break:
    def act() -> None:
        Path(path).unlink()
        make(Path(path))

    return act


def _recode(encoding: str) -> Break:
    return lambda: put(SEED, _text().decode().encode(encoding))()


FILES: dict[str, tuple[Break, str]] = {
    "missing": (lambda: Path(SEED).unlink(), f"{SEED}: no such file"),
    "a directory": (_replace(lambda path: path.mkdir()), f"{SEED}: is a directory"),
    "a link to itself": (_replace(lambda path: path.symlink_to(path.name)), SEED),
    "a link to nothing": (_replace(lambda path: path.symlink_to("nothing")), f"{SEED}: no such file"),
    "a named pipe": (_replace(lambda path: os.mkfifo(path)), f"{SEED}: is not a regular file"),
    "a device": (_replace(lambda path: path.symlink_to("/dev/zero")), f"{SEED}: is not a regular file"),
    "under a file": (param("prepare_data.instructions", f"{SEED}/a.jsonl"), f"{SEED}/a.jsonl"),
    "a name too long": (param("prepare_data.instructions", "a" * 5000), "File name too long"),
    "a NUL in the name": (param("prepare_data.instructions", "a\0b"), "null byte"),
    "no name": (param("prepare_data.instructions", ""), "is a directory"),
    "empty": (put(SEED, b""), f"{SEED}: has no rows"),
    "blank lines only": (put(SEED, b"\n \n\t\n"), f"{SEED}: has no rows"),
    "gzip": (lambda: put(SEED, gzip.compress(_text()))(), f"{SEED}:1: not a JSON object: 'utf-8' codec"),
    "UTF-16": (_recode("utf-16"), f"{SEED}:1: not a JSON object: 'utf-8' codec"),
    "UTF-16 without a mark": (_recode("utf-16-le"), f"{SEED}:1: not a JSON object"),
    "UTF-32": (_recode("utf-32"), f"{SEED}:1: not a JSON object: 'utf-8' codec"),
    "cut off in the last line": (lambda: put(SEED, _text()[:-20])(), f"{SEED}:12: not a JSON object"),
    "cut off in a character": (line(SEED, 12, GOOD.encode()[:-2] + "é".encode()[:1]), f"{SEED}:12: "),
    "one JSON array": (lambda: put(SEED, b"[" + _text().replace(b"}\n{", b"},\n{") + b"]")(), f"{SEED}:1: "),
    "indented JSON": (put(SEED, json.dumps(INSTRUCTIONS[0], indent=2)), f"{SEED}:1: not a JSON object"),
    "CSV": (put(SEED, "id,category,prompt,completion\n1,c,p,x\n"), f"{SEED}:1: not a JSON object"),
    "YAML": (put(SEED, "id: 1\ncategory: c\n"), f"{SEED}:1: not a JSON object"),
    "lines ended by CR alone": (lambda: put(SEED, _text().replace(b"\n", b"\r"))(), f"{SEED}:1: not a JSON object"),
    "zeros after a crash": (lambda: put(SEED, _text() + bytes(512))(), f"{SEED}:13: not a JSON object"),
    "a Git LFS pointer": (put(SEED, "version https://git-lfs.github.com/spec/v1\n"), f"{SEED}:1: not a JSON object"),
    "a merge conflict": (line(SEED, 3, "<<<<<<< HEAD"), f"{SEED}:3: not a JSON object"),
    "a web page": (put(SEED, "<!DOCTYPE html>\n<html></html>\n"), f"{SEED}:1: not a JSON object"),
}
LINES: dict[str, tuple[str | bytes, str]] = {
    "NUL bytes": (SECOND.encode().replace(b"red", b"\0\0"), "not a JSON object"),
    "invalid UTF-8": (SECOND.encode().replace(b"red", b"\xff\xfe"), "not a JSON object: 'utf-8' codec"),
    "Latin-1": (SECOND.encode().replace(b"red", "rouge é".encode("latin-1")), "not a JSON object: 'utf-8' codec"),
    "a surrogate in UTF-8": (SECOND.replace("red", "\ud800"), "not a JSON object: 'utf-8' codec"),
    "half a surrogate pair": (SECOND.replace("red", r"\ud800"), "not a JSON object: half a surrogate pair"),
    "the other half, in capitals": (SECOND.replace("red", r"\uDFFF"), "not a JSON object: half a surrogate pair"),
    "half a pair in a key": (SECOND.replace("prompt", r"\ud83d"), "not a JSON object: half a surrogate pair"),
    "NaN": (SECOND[:-1] + ', "score": NaN}', "not a JSON object: NaN"),
    "Infinity": (SECOND[:-1] + ', "score": -Infinity}', "not a JSON object: -Infinity"),
    "a number beyond all floats": (SECOND[:-1] + ', "score": 1e999}', "not a JSON object: '1e999' is too large"),
    "a number of 50 digits": (SECOND[:-1] + f', "score": {"9" * 50}}}', "is too large a number"),
    "a number of 5000 digits": (SECOND[:-1] + f', "score": {"9" * 5000}}}', "is too large a number"),
    "a key twice": (SECOND[:-1] + ', "prompt": "another"}', "not a JSON object: key 'prompt' appears twice"),
    "arrays nested deeply": ("[" * 100_000, "not a JSON object: nested too deeply"),
    "objects nested deeply": ('{"id":' * 100_000, "not a JSON object: nested too deeply"),
    "a deep value": (SECOND[:-1] + ', "x": ' + "[" * 9999 + "]" * 9999 + "}", "not a JSON object: nested too deeply"),
    "a tail behind the object": (SECOND + " x", "not a JSON object"),
    "two objects": (SECOND * 2, "not a JSON object"),
    "an array": ("[]", "not a JSON object"),
    "a text": ('"text"', "not a JSON object"),
    "null": ("null", "not a JSON object"),
    "single quotes": ("{'id': 'x'}", "not a JSON object"),
    "a trailing comma": (SECOND[:-1] + ",}", "not a JSON object"),
    "a comment": ("// " + SECOND, "not a JSON object"),
    "a raw control character": (SECOND.replace("red", "\x1b[31m"), "not a JSON object: Invalid control character"),
    "an empty object": ("{}", '"id" is missing'),
    "an unknown key": (SECOND[:-1] + ', "text": "x"}', '"text" is not a key of this file'),
    "an unknown key with an escape": (SECOND[:-1] + r', "\u001b[2J": "x"}', "is not a key of this file"),
    "a very long key": (SECOND[:-1] + f', "{"k" * 100_000}": 1}}', "is not a key of this file"),
}
# Wrong values of each kind of row, each through a stage that reads it: (command, file, line, changes, complaint).
ROWS: list[tuple[str, str, int, dict[str, object], str]] = [
    ("prepare_data", SEED, 2, {"prompt": 3}, '"prompt" should be a valid string'),
    ("prepare_data", SEED, 2, {"prompt": " \u3000\n"}, '"prompt" is empty'),
    ("prepare_data", SEED, 2, {"completion": None}, '"completion" should be'),
    ("prepare_data", SEED, 2, {"id": "i1"}, "duplicate id 'i1', first used in line 1"),
    ("prepare_data", SEED, 2, {"source": "web"}, '"source" should be'),
    ("prepare_data", SEED, 2, {"prompt": ["a"] * 10_000}, '"prompt" should be'),
    ("prepare_data", SEED, 2, {"prompt": "Tell me about the number 1."}, "is a prompt of data/seed/eval_prompts.jsonl"),
    ("prepare_data", "data/seed/judgements.jsonl", 3, {"score": 6}, '"score" should be less than or equal to 5'),
    ("prepare_data", "data/seed/judgements.jsonl", 3, {"score": "3"}, '"score" should be a valid integer'),
    ("prepare_data", "data/seed/judgements.jsonl", 3, {"score": True}, '"score" should be a valid integer'),
    ("prepare_data", "data/seed/judgements.jsonl", 3, {"score": 2.5}, '"score" should be'),
    ("prepare_data", "data/seed/judgements.jsonl", 3, {"rank": -1}, '"rank" should be'),
    ("prepare_data", "data/seed/judgements.jsonl", 2, JUDGEMENTS[0], ", first used in line 1"),
    ("prepare_data", "data/seed/eval_prompts.jsonl", 2, {"turns": []}, '"turns"'),
    ("prepare_data", "data/seed/eval_prompts.jsonl", 2, {"turns": "one"}, '"turns"'),
    ("prepare_data", "data/seed/eval_prompts.jsonl", 2, {"turns": ["a", ""]}, '"turns.1" is empty'),
    ("prepare_data", "data/seed/eval_prompts.jsonl", 2, {"id": "e1"}, "duplicate id 'e1', first used in line 1"),
    ("prepare_data", SEED, 2, {"prompt": "Say 2 in words."}, f"is a prompt of {CHECKED}"),
    ("prepare_data", CHECKED, 2, {"id": "c1"}, "duplicate id 'c1', first used in line 1"),
    ("prepare_data", CHECKED, 2, {"checks": []}, '"checks" List should have at least 1 item'),
    ("prepare_data", CHECKED, 2, {"checks": ["words"]}, '"checks.0" should be'),
    ("prepare_data", CHECKED, 2, {"checks": [{"min": 3}]}, '"checks.0" has no "kind"; add it'),
    ("prepare_data", CHECKED, 2, {"checks": [{"kind": "rhymes"}]}, "\"checks.0\" has the unknown kind 'rhymes'; write"),
    ("prepare_data", CHECKED, 2, {"checks": [{"kind": "words"}]}, '"checks.0.words" needs min, max or both'),
    ("prepare_data", CHECKED, 2, {"checks": [{"mim": 3, "kind": "words"}]}, '"checks.0.words.mim" is not a key there'),
    ("prepare_data", CHECKED, 2, {"checks": [{"kind": "words", "min": 0}]}, '"checks.0.words.min" should be greater'),
    ("prepare_data", CHECKED, 2, {"checks": [{"max": 3, "min": 9, "kind": "words"}]}, "has min 9 above max 3"),
    ("prepare_data", CHECKED, 2, {"checks": [{"kind": "one_of", "options": []}]}, '"checks.0.one_of.options" List'),
    ("prepare_data", CHECKED, 2, {"checks": [{"kind": "ends_with"}]}, '"checks.0.ends_with.text" is missing; add it'),
    ("prepare_data", CHECKED, 2, {"checks": [{"kind": "language", "language": "xx"}]}, "py3langid does not know 'xx'"),
    ("prepare_data", CHECKED, 2, {"checks": OPPOSITE}, "lower_case and upper_case exclude each other"),
    ("sft", "data/m0/ift.jsonl", 4, {"completion": ""}, '"completion" is empty'),
    ("sft", "data/m0/eft.jsonl", 4, {"response": 1}, '"response" should be'),
    ("generate_prompts m1 m0", "data/m0/known_prompts.jsonl", 5, {"source": 1}, '"source" should be'),
    ("generate_prompts m1 m0", "data/prepared/eval/prompts.jsonl", 1, {"turns": [1]}, '"turns.0" should be'),
    ("generate_responses m1 m0", "data/m1/prompts.jsonl", 2, {"messages": []}, '"messages"'),
    ("generate_responses m1 m0", "data/m1/prompts.jsonl", 2, {"id": "p1"}, "duplicate id 'p1', first used in line 1"),
    (
        "generate_responses m1 m0",
        "data/m1/prompts.jsonl",
        2,
        {"messages": [{"role": "tool", "content": "x"}]},
        '"messages.0.role" should be',
    ),
    (
        "generate_responses m1 m0",
        "data/m1/prompts.jsonl",
        2,
        {"messages": [{"role": "user", "content": ""}]},
        '"messages.0.content" is empty',
    ),
    ("judge m1 m0", "data/m1/responses.jsonl", 2, {"num_tokens": -1}, '"num_tokens" should be'),
    ("judge m1 m0", "data/m1/responses.jsonl", 2, {"sample": 0}, "duplicate id 'p1', sample 0, first used in line 1"),
    ("judge m1 m0", "data/m1/responses.jsonl", 2, {"finish_reason": "eos"}, '"finish_reason" should be'),
    ("build_preferences m1 m0", "data/m1/scores.jsonl", 3, {"score": 5.5}, '"score" should be less than'),
    ("build_preferences m1 m0", "data/m1/scores.jsonl", 3, {"judgements": None}, '"judgements" should be'),
    ("build_preferences m1 m0", "data/m0/ift.jsonl", 2, {"id": "i1"}, ", first used in line 1"),
    ("dpo m1 m0", "data/m1/preferences.jsonl", 2, {"chosen": "\n"}, '"chosen" is empty'),
    ("dpo m1 m0", "data/m1/preferences.jsonl", 2, {"margin": "1"}, '"margin" should be'),
    ("reward_model", "data/prepared/preferences/train.jsonl", 1, {"rejected": 0}, '"rejected" should be'),
    ("reward_model", "data/prepared/preferences/test.jsonl", 3, {"chosen": ""}, '"chosen" is empty'),
    ("ppo", "data/prepared/prompts.jsonl", 3, {"messages": "Hi"}, '"messages" should be'),
    ("evaluate m0", "data/prepared/eval/prompts.jsonl", 2, {"category": ""}, '"category" is empty'),
    ("evaluate m0", "data/prepared/eval/checked_prompts.jsonl", 2, {"prompt": ""}, '"prompt" is empty'),
    ("summary", "data/eval/m1.jsonl", 1, {"reward": None}, '"reward" should be'),
    ("summary", "data/eval/m1.jsonl", 2, {"id": "e1"}, "duplicate id 'e1', turn 1, first used in line 1"),
    ("summary", "data/metrics/m1/anchors.jsonl", 2, {"predicted": "high"}, '"predicted" should be'),
    ("summary", "data/ppo/samples.jsonl", 2, {"update": -1}, '"update" should be'),
]
LIKES = [
    {"prompt": f"Is {n} odd?", "completion": reply, "label": label}
    for n in range(1, 4)
    for reply, label in (("Look.", True), ("No.", False))
]
# KTO's single replies in a file of the user's: changes of the second row, or whole rows, and the complaint.
FEEDBACK: dict[str, tuple[dict[str, object] | list[dict[str, Any]], str]] = {
    "no undesirable reply": ([row for row in LIKES if row["label"]], 'none has "label" false; KTO learns from'),
    "no desirable reply": ([row for row in LIKES if not row["label"]], 'none has "label" true; KTO learns from'),
    "one prompt": ([row | {"prompt": "Why?"} for row in LIKES], "all have one prompt; KTO's KL term"),
    "prompts of the evaluation alone": (
        [row | {"prompt": "say 2 in words. "} for row in LIKES],
        "each of its rows has a prompt of the evaluation; add",
    ),
    "a pair among single replies": ({"chosen": "a", "rejected": "b"}, ':2: "chosen" is not a key of this file'),
    "a label as a text": ({"label": "true"}, ':2: "label" should be a valid boolean'),
    "a label as a number": ({"label": 1}, ':2: "label" should be a valid boolean'),
    "no label": ({"label": None}, ':2: "label" should be a valid boolean'),
    "an empty completion": ({"completion": " "}, ':2: "completion.0.content" is empty'),
    "a completion of the user": (
        {"completion": [{"role": "user", "content": "Hi"}]},
        ':2: "completion" should be one turn of the assistant; move',
    ),
    "a prompt that ends with a reply": (
        {"prompt": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]},
        ':2: "prompt" does not end with a turn of the user; end',
    ),
    "a prompt as a number": ({"prompt": 7}, ':2: "prompt" should be a valid list'),
    "no turn in the prompt": ({"prompt": []}, ':2: "prompt"'),
}
# Every other file that a stage reads: cut off in the middle.
TORN = {
    "sft": ["data/m0/ift.jsonl", "data/m0/eft.jsonl"],
    "generate_prompts m1 m0": ["data/m0/known_prompts.jsonl", "data/prepared/eval/judgements.jsonl"],
    "generate_responses m1 m0": ["data/m1/prompts.jsonl", "data/m0/ift.jsonl"],
    "judge m1 m0": ["data/m1/responses.jsonl", "data/prepared/eval/judgements.jsonl"],
    "build_preferences m1 m0": ["data/m1/scores.jsonl", "data/m0/ift.jsonl"],
    "dpo m1 m0": ["data/m1/preferences.jsonl"],
    "reward_model": ["data/prepared/preferences/train.jsonl", "data/prepared/preferences/test.jsonl"],
    "ppo": ["data/prepared/prompts.jsonl", "data/m0/ift.jsonl"],
    "evaluate m0": [f"data/prepared/eval/{name}.jsonl" for name in ("prompts", "checked_prompts")],
    "summary": ["data/eval/base.jsonl", "data/metrics/m1/anchors.jsonl", "data/ppo/samples.jsonl"],
}
START = "\n\nHuman: Hi\n\nAssistant: Yo\n\nHuman: So?\n\nAssistant:"
TRANSCRIPTS: dict[str, tuple[str, str]] = {
    "no turns": ("Hello", '"chosen" must start with'),
    "text before the first turn": ("Well. " + START + " Good.", '"chosen" must start with'),
    "the assistant first": ("\n\nAssistant: Hi", '"chosen" must start with'),
    "one line break only": ("\nHuman: Hi\nAssistant: Yo", '"chosen" must start with'),
    "two human turns": ("\n\nHuman: Hi\n\nHuman: Hi\n\nAssistant: Yo", "turns must alternate"),
    "an empty reply": (START, "turn 4 (Assistant) is empty"),
    "an empty turn within": ("\n\nHuman:\n\nAssistant: Yo", "turn 1 (Human) is empty"),
    "a human turn last": ("\n\nHuman: Hi\n\nAssistant: Yo\n\nHuman: So?", "ends with a human turn"),
    "another conversation": ("\n\nHuman: Other\n\nAssistant: Yo", "differ before the last reply"),
    "equal replies": ("\n\nHuman: Is 2 odd?\n\nAssistant:  No. ", "are equal"),
}
REPLIES = [{"text": f"reply {n}", "role": "assistant", "rank": n} for n in range(3)]
PROMPT: dict[str, object] = {"text": "Why?", "role": "prompter", "lang": "en", "replies": REPLIES}
TREE = {"message_tree_id": "t1", "prompt": PROMPT}
TREES: dict[str, tuple[object, str]] = {
    "no prompt": ({"message_tree_id": "t2"}, ':2: "prompt" is missing'),
    "no id": ({**TREE, "message_tree_id": " "}, ':2: "message_tree_id" is empty'),
    "a prompt that is a text": ({**TREE, "prompt": "Why?"}, ':2: "prompt" should be'),
    "a prompt of the assistant's": (
        {**TREE, "prompt": {"text": "Why?", "role": "assistant"}},
        ':2: "prompt.role" should be',
    ),
    "a rank that is a text": (
        {**TREE, "prompt": {**PROMPT, "replies": [{**REPLIES[0], "rank": "0"}]}},
        ':2: "prompt.replies.0.rank" should be',
    ),
    "replies that are no list": (
        {**TREE, "prompt": {**PROMPT, "replies": {}}},
        ':2: "prompt.replies" should be',
    ),
    "one tree only": (TREE, "a split needs at least two different prompts, found 1"),
}
JUDGED = "data/seed/judgements.jsonl"
FEW: dict[str, tuple[Break, str]] = {
    "all on one prompt": (
        both(*(row(JUDGED, n, prompt="One?") for n in range(1, 37))),
        f"{JUDGED}: a split needs at least two different prompts, found 1",
    ),
    "one score only": (
        both(*(row(JUDGED, n, score=0) for n in range(1, 37))),
        "prepare_data.max_score_share: 0.3 cannot be met",
    ),
    "one pair only": (
        lambda: put("data/seed/preferences.jsonl", Path("data/seed/preferences.jsonl").read_bytes().split(b"\n")[0])(),
        "data/seed/preferences.jsonl: a split needs at least two different prompts, found 1",
    ),
    "trees read as scored rows": (put(JUDGED, json.dumps(TREE)), f'{JUDGED}:1: "question_id" is missing'),
    "scored rows read as trees": (
        param("prepare_data.judgements_format", "message_trees"),
        f'{JUDGED}:1: "message_tree_id" is missing',
    ),
    "no tree in the language": (
        both(
            param("prepare_data.judgements_format", "message_trees"),
            param("prepare_data.language", "xx"),
            put(JUDGED, json.dumps(TREE)),
        ),
        f"{JUDGED}: a split needs at least two different prompts, found 0",
    ),
    "every pair unusable": (
        both(
            param("prepare_data.unusable_preferences", "drop"),
            put("data/seed/preferences.jsonl", json.dumps({"chosen": "a", "rejected": "b"})),
        ),
        "data/seed/preferences.jsonl: a split needs at least two different prompts, found 0",
    ),
}


def cases() -> Iterator[Case]:
    """Yield the cases."""
    for name, (breaks, says) in FILES.items():
        yield Case("data file", name, "prepare_data", breaks, (says,))
    for name, (content, says) in LINES.items():
        yield Case("line of a data file", name, "prepare_data", line(SEED, 2, content), (f"{SEED}:2: ", says))
    for command, path, number, changes, says in ROWS:
        what, to = next(iter(changes.items()))
        name = f"{path}: {what} {str(to)[:20]!r}"
        yield Case("row", name, command, row(path, number, **changes), (f"{path}:{number}: ", says))
    for command, paths in TORN.items():
        for path in paths:
            name = f"{path} read by {command}"
            yield Case("torn file", name, command, _torn(path), (f"{path}:", "not a JSON object"))
            yield Case("missing file", name, command, _remove(path), (f"{path}: no such file",))
    path = "data/seed/preferences.jsonl"
    for name, (text, says) in TRANSCRIPTS.items():
        # A blank line before it: the message still names the line of the file.
        breaks = both(row(path, 2, chosen=text), line(path, 1, ""))
        yield Case("hh-rlhf transcript", name, "prepare_data", breaks, (f"{path}:2: ", says))
    for name, (tree, says) in TREES.items():
        content = json.dumps(TREE) + "\n" + (json.dumps(tree) if tree is not TREE else "")
        breaks = both(param("prepare_data.judgements_format", "message_trees"), put(JUDGED, content))
        yield Case("OpenAssistant tree", name, "prepare_data", breaks, (f"{JUDGED}:", says))
    for name, (breaks, says) in FEW.items():
        yield Case("too few rows", name, "prepare_data", breaks, (says,))
    for path, key in (("data/m1/scores.jsonl", "failure"), ("data/eval/m1.jsonl", "turn")):
        command = "summary" if "eval" in path else "build_preferences m1 m0"
        yield Case("row", f"{path}: without {key}", command, without(path, key), (f'{path}:1: "{key}" is missing',))

    for name, (found, says) in FEEDBACK.items():
        likes = found if isinstance(found, list) else [LIKES[0], LIKES[1] | found, *LIKES[2:]]
        yield Case("KTO's reply", name, "offline_dpo", _feedback(likes, ["kto"]), ("data/likes.jsonl:", says))
    pairs = _feedback(LIKES, ["sigmoid"])
    says = "only KTO learns from these; set offline_dpo.loss_type to [kto]"
    yield Case("KTO's reply", "for a loss of pairs", "offline_dpo", pairs, (says,))


def _feedback(rows: list[dict[str, Any]], loss: list[str]) -> Break:
    content = "".join(json.dumps(row) + "\n" for row in rows)
    settings = {"data": "data/likes.jsonl", "loss_type": loss}
    return both(put("data/likes.jsonl", content), *(param(f"offline_dpo.{key}", to) for key, to in settings.items()))


def _torn(path: str) -> Break:
    return lambda: put(path, Path(path).read_bytes()[:-15])()


def _remove(path: str) -> Break:
    def act() -> None:
        Path(path).unlink() if Path(path).is_file() else shutil.rmtree(path)

    return act
