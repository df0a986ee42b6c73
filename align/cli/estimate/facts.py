"""What a run is about to work on: rows and tokens, from the files that are here and from params where they are not."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from align.cli.estimate.settings import Values
from align.core.errors import InputError

SAMPLE = 300  # rows whose text is counted in tokens
CHARACTERS_A_TOKEN = 4.0
# Where a file is not here yet: tokens of a prompt and of an answer, those of OpenAssistant's and hh-rlhf's, about.
UNKNOWN_PROMPT, UNKNOWN_REPLY = 60.0, 200.0
UNKNOWN_ROWS = 1000
RESPONSES_A_QUESTION = 3  # of message trees
TEMPLATE_TOKENS = 10  # that a chat template puts around a turn


@dataclass(frozen=True)
class Rows:
    """Rows of a prompt and a reply: how many, and their tokens in the mean."""

    count: int
    prompt: float = 0.0
    reply: float = 0.0


@dataclass(frozen=True)
class Facts:
    """Rows of the data that stages begin with, and what was assumed to know them (`notes`)."""

    instructions: Rows
    questions: int  # that the judge is trained on
    judged: Rows  # their responses
    held_out_judged: Rows
    held_out_questions: int
    train_pairs: Rows
    test_pairs: Rows
    ppo_prompts: Rows
    eval_prompts: Rows
    rubric: float  # tokens of the judge's request without question and response
    data_bytes: int
    notes: list[str]
    texts: Rows = Rows(0)  # of the plain-text track; whole rows, as prompts
    held_out_texts: Rows = Rows(0)


class Counter:
    """Counts tokens with the tokenizer of a model folder, or characters where there is none."""

    def __init__(self, folder: Path | None) -> None:
        self.exact = folder is not None and (folder / "tokenizer.json").is_file()
        self._tokenizer: Any = None
        if folder is not None and self.exact:
            # Of its own package: transformers takes seconds to import.
            self._tokenizer = import_module("tokenizers").Tokenizer.from_file(str(folder / "tokenizer.json"))

    def mean(self, texts: Sequence[str]) -> float:
        """Return the mean tokens of a text, of a sample spread over them."""
        if not texts:
            return 0.0
        chosen = texts[:: max(1, len(texts) // SAMPLE)]
        if self._tokenizer is None:
            return sum(map(len, chosen)) / CHARACTERS_A_TOKEN / len(chosen)
        encoded = self._tokenizer.encode_batch(list(chosen), add_special_tokens=False)
        return sum(len(found.ids) for found in encoded) / len(chosen)


def gather(values: Values, root: Path, tokenizer: Path | None, fresh: bool, texts: bool = False) -> Facts:
    """Return the facts of a run with these params in `root`.

    Args:
        values: the params.
        root: of the repository.
        tokenizer: a folder with the base's tokenizer, if there is one.
        fresh: count the raw data alone, as if nothing had been built.
        texts: count those of the plain-text track, too.
    """
    counter, notes = Counter(tokenizer), []
    if not counter.exact:
        notes.append(f"tokens: {CHARACTERS_A_TOKEN:.0f} characters each, as the base's tokenizer is not here")
    rubric = counter.mean([(root / "prompts/judge.jinja").read_text(encoding="utf-8")]) + TEMPLATE_TOKENS
    prepared = root / "data/prepared"
    if not fresh and (prepared / "eval/judgements.jsonl").is_file() and (root / "data/m0/eft.jsonl").is_file():
        facts = _prepared(root, counter, rubric, notes)
    else:
        facts = _raw(values, root, counter, rubric, notes)
    if texts:
        both = (_texts(values, root, key, counter, notes) for key in ("train", "test"))
        facts = replace(facts, texts=next(both), held_out_texts=next(both))
    return replace(facts, ppo_prompts=_within(values, facts))


def _prepared(root: Path, counter: Counter, rubric: float, notes: list[str]) -> Facts:
    """Read what prepare_data has written."""
    prepared = root / "data/prepared"
    judged, held_out = _read(root / "data/m0/eft.jsonl"), _read(prepared / "eval/judgements.jsonl")
    pairs = [_read(prepared / "preferences" / f"{side}.jsonl") for side in ("train", "test")]
    evaluation = _read(prepared / "eval/prompts.jsonl")
    sizes = [file.stat().st_size for file in [*prepared.rglob("*.jsonl"), *(root / "data/m0").glob("*.jsonl")]]
    return Facts(
        instructions=_rows(_read(root / "data/m0/ift.jsonl"), counter, "prompt", "completion"),
        questions=len({_text(row, "question_id") for row in judged}),
        judged=_rows(judged, counter, "prompt", "response"),
        held_out_judged=_rows(held_out, counter, "prompt", "response"),
        held_out_questions=len({_text(row, "question_id") for row in held_out}),
        train_pairs=_rows(pairs[0], counter, "messages", "chosen"),
        test_pairs=_rows(pairs[1], counter, "messages", "chosen"),
        ppo_prompts=_rows(_read(prepared / "prompts.jsonl"), counter, "messages", ""),
        eval_prompts=_rows(evaluation, counter, "turns", ""),
        rubric=rubric,
        data_bytes=sum(sizes),
        notes=notes,
    )


def _raw(values: Values, root: Path, counter: Counter, rubric: float, notes: list[str]) -> Facts:
    """Read the files that section `prepare_data` names, and split them as it will, about."""
    size = 0

    def rows(key: str, prompt: str, reply: str, limit: str) -> tuple[Rows, list[dict[str, Any]]]:
        nonlocal size
        path = root / values.text(f"prepare_data.{key}")
        most = values.optional_number(f"prepare_data.{limit}") or values.source_limit(path.stem)
        found = [row for row in _read(path) if _text(row, prompt)] if path.is_file() else []
        if found:
            size += path.stat().st_size
            counted = _rows(found, counter, prompt, reply)
            return replace(counted, count=min(counted.count, int(most or counted.count))), found
        what = f"taken to be {UNKNOWN_PROMPT:.0f} tokens of prompt and {UNKNOWN_REPLY:.0f} of reply"
        of = f"its {limit}" if most else "a guess, set it with prepare_data." + limit
        notes.append(f"prepare_data.{key}: no rows to read here yet: {int(most or UNKNOWN_ROWS)} ({of}), {what}")
        return Rows(int(most or UNKNOWN_ROWS), UNKNOWN_PROMPT, UNKNOWN_REPLY), []

    instructions, _ = rows("instructions", "prompt", "completion", "max_instructions")
    judgements, read = rows("judgements", "prompt", "response", "max_judgements")
    pairs, transcripts = rows("preferences", "chosen", "rejected", "max_preferences")
    if transcripts:  # a transcript is prompt and reply in one
        replies = [_text(row, "chosen").rpartition("\n\nAssistant:")[2] for row in transcripts]
        reply = counter.mean(replies)
        pairs = replace(pairs, prompt=max(0.0, pairs.prompt - reply), reply=reply)
    evaluation, _ = rows("eval_prompts", "turns", "", "max_eval_prompts")
    questions = len({_text(row, "question_id") for row in read}) or judgements.count // RESPONSES_A_QUESTION
    test, pairs_test = (values.number(f"prepare_data.{k}_test_fraction") for k in ("judgements", "preferences"))
    asked = round(questions * (1 - test))
    negatives = asked * int(values.number("prepare_data.off_topic_negatives"))
    return Facts(
        instructions=instructions,
        questions=asked,
        judged=replace(judgements, count=round(judgements.count * (1 - test)) + negatives),
        held_out_judged=replace(judgements, count=round(judgements.count * test)),
        held_out_questions=questions - asked,
        train_pairs=replace(pairs, count=round(pairs.count * (1 - pairs_test))),
        test_pairs=replace(pairs, count=round(pairs.count * pairs_test)),
        ppo_prompts=Rows(round(pairs.count * (1 - pairs_test)), pairs.prompt),
        eval_prompts=evaluation,
        rubric=rubric,
        data_bytes=size,
        notes=notes,
    )


def _texts(values: Values, root: Path, key: str, counter: Counter, notes: list[str]) -> Rows:
    """Read the labelled texts that section `text` names, as its template puts them."""
    path, template = root / values.text(f"text.{key}"), values.text("text.template")
    if path.is_file():
        found = [
            template.replace("{text}", _text(row, "text")).replace("{label_text}", _text(row, "label_text"))
            for row in _objects(path)
        ]
        return Rows(len(found), counter.mean(found) + 1)  # an EOS
    count = values.source_limit(path.stem)
    of = f"sources.{path.stem}.limit" if count else f"a guess, set sources.{path.stem}.limit"
    notes.append(
        f"text.{key}: no rows to read here yet: {int(count or UNKNOWN_ROWS)} ({of}), taken to be {UNKNOWN_PROMPT:.0f} "
        "tokens each"
    )
    return Rows(int(count or UNKNOWN_ROWS), UNKNOWN_PROMPT)


def _within(values: Values, facts: Facts) -> Rows:
    """Return PPO's prompts, which are no longer than it allows."""
    return replace(
        facts.ppo_prompts,
        prompt=min(facts.ppo_prompts.prompt + TEMPLATE_TOKENS, values.number("ppo.max_prompt_length")),
    )


def _rows(rows: Sequence[dict[str, Any]], counter: Counter, prompt: str, reply: str) -> Rows:
    means = [counter.mean([_text(row, key) for row in rows]) if key else 0.0 for key in (prompt, reply)]
    return Rows(len(rows), *means)


def _text(row: dict[str, Any], key: str) -> str:
    """Return a field as text: a turn alone of several, a conversation as one."""
    value = row.get(key)
    if isinstance(value, list):
        parts = [part.get("content", "") if isinstance(part, dict) else part for part in value]
        return " ".join(map(str, parts if key == "messages" else parts[:1]))
    return value if isinstance(value, str) else ""


def _read(path: Path) -> list[dict[str, Any]]:
    return list(_objects(path))


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows that are JSON objects: what is wrong with others is told by the stage that reads them."""
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            for line in stream:
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(row, dict):
                    yield row
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); rebuild it with `dvc repro`") from None
