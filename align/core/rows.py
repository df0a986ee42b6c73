"""The rows that the stages exchange, and their strict JSONL reader and writer.

Every reader checks every row: a wrong row is an `InputError` that names file, line, what is wrong and how to mend it.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import jsonlines
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from align.core.errors import InputError, quoted
from align.core.files import replacing
from align.core.jsonl import dumps, read_objects


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty: write the text or delete the row")
    return text


Text = Annotated[str, AfterValidator(_not_blank)]
FinishReason = Literal["stop", "length"]


class Row(BaseModel):
    """Base of every row: frozen, no unknown keys, no conversion between types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Message(Row):
    """One turn of a conversation, as chat templates take it."""

    role: Literal["system", "user", "assistant"]
    content: Text


class Instruction(Row):
    """Seed data and IFT: a prompt and the completion to learn.

    `source` tells seed rows from those that a model wrote, which also have the iteration that they are of, their score
    and who gave it.
    """

    id: Text
    category: Text
    prompt: Text
    completion: Text
    source: Literal["seed", "generated"] = "seed"
    iteration: str | None = None
    score: float | None = None
    judge: str | None = None


class Judgement(Row):
    """Seed data and EFT: a response to a question with its score on the additive 5-point scale, and why.

    `rank` is the human ranking of the question's responses, 0 = best; None where there is none.
    """

    question_id: Text
    category: Text
    prompt: Text
    response: Text
    score: int = Field(ge=0, le=5)
    justification: Text | None = None
    rank: int | None = Field(default=None, ge=0)


class Transcript(Row):
    """A pair in Anthropic's hh-rlhf format: two transcripts with `\\n\\nHuman:` and `\\n\\nAssistant:` turns."""

    chosen: Text
    rejected: Text


class EvalPrompt(Row):
    """A held-out conversation: the user's turns, in MT-Bench's form."""

    id: Text
    category: Text
    turns: list[Text] = Field(min_length=1)


class Prompt(Row):
    """A conversation that waits for a reply."""

    id: Text
    messages: list[Message] = Field(min_length=1)


class KnownPrompt(Row):
    """A prompt that the loop knows: a seed, or one that an earlier iteration (or this one) wrote."""

    prompt: Text
    source: Literal["seed", "generated"]
    iteration: str | None = None


class PreferencePair(Row):
    """Two replies to one conversation; `margin` is the difference of their scores where there are scores.

    A reply that was cut off (`length`) is trained on without the EOS that it never had.
    """

    id: Text
    messages: list[Message] = Field(min_length=1)
    chosen: Text
    rejected: Text
    chosen_finish_reason: FinishReason = "stop"
    rejected_finish_reason: FinishReason = "stop"
    margin: float | None = None


class ScoredPair(Row):
    """What a reward model makes of a held-out pair; lengths are of the replies, EOS included."""

    id: Text
    chosen_score: float
    rejected_score: float
    chosen_tokens: int = Field(ge=1)
    rejected_tokens: int = Field(ge=1)


class TrainingSample(Row):
    """A prompt's answer in the course of training: after how many updates, and what the reward model makes of it."""

    id: Text
    update: int = Field(ge=0)
    prompt: Text
    response: str
    finish_reason: FinishReason
    score: float


class Response(Row):
    """One of the N sampled replies to a prompt; `sample` counts from 0. The text may be empty: models do that."""

    id: Text
    sample: int = Field(ge=0)
    prompt: Text
    response: str
    finish_reason: FinishReason
    num_tokens: int = Field(ge=0)


class ScoredResponse(Response):
    """A response with its judgement. A failed judgement is `score: null` and a `failure`, never a number.

    `digit_mass` is the probability that the judge gave to the digits 0-5 together, `entropy` that of the digits in
    nats; both are null in sample mode, where `judgements` holds the judge's texts.
    """

    score: float | None = Field(ge=0, le=5)
    failure: str | None
    digit_mass: float | None
    entropy: float | None
    judgements: list[str]


class AnchorScore(Row):
    """What a model, as a judge, makes of one of the held-out judged responses: the anchors, the same for every model.

    `number` counts the responses of a question from 0; `score` is the human one.
    """

    question_id: Text
    number: int = Field(ge=0)
    score: int = Field(ge=0, le=5)
    predicted: float | None
    failure: str | None


class Answer(Row):
    """A model's reply to a held-out prompt, with everything that `evaluate` measured on it."""

    id: Text
    category: Text
    turn: int = Field(ge=1)
    prompt: Text
    response: str
    finish_reason: FinishReason
    num_tokens: int = Field(ge=0)
    judge_score: float | None
    judge_failure: str | None
    reward: float
    kl_to_base: float


R = TypeVar("R", bound=Row)


def read_rows(path: Path, row_type: type[R], *, unique: Sequence[str] = (), allow_empty: bool = False) -> list[R]:
    """Read a JSONL file into rows.

    Args:
        path: the file; UTF-8, one JSON object a line, blank lines are ignored.
        row_type: what each line must be.
        unique: fields whose values together must differ between rows.
        allow_empty: whether a file without rows is fine.
    """
    return [row for _, row in read_numbered_rows(path, row_type, unique=unique, allow_empty=allow_empty)]


def read_numbered_rows(
    path: Path, row_type: type[R], *, unique: Sequence[str] = (), allow_empty: bool = False
) -> list[tuple[int, R]]:
    """Read a JSONL file into rows, each with the number of its line; see `read_rows`."""
    rows: list[tuple[int, R]] = []
    seen: dict[tuple[object, ...], int] = {}
    for number, value in read_objects(path):
        row = _parse_row(f"{path}:{number}", value, row_type)
        key = tuple(getattr(row, field) for field in unique)
        if unique and key in seen:
            what = ", ".join(f"{field} {quoted(value)}" for field, value in zip(unique, key, strict=True))
            raise InputError(f"{path}:{number}: {what} stands already in line {seen[key]}: make it unique")
        seen[key] = number
        rows.append((number, row))
    if not rows and not allow_empty:
        raise InputError(f"{path}: has no rows; at least one is needed")
    return rows


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSONL, whole or not at all."""
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8") as stream,
        jsonlines.Writer(stream, dumps=dumps) as writer,
    ):
        for row in rows:
            writer.write(row.model_dump(mode="json"))


def _parse_row(place: str, value: dict[str, Any], row_type: type[R]) -> R:
    try:
        return row_type.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = json.dumps(".".join(str(part) for part in first["loc"])[:100])[1:-1]
        known = ", ".join(row_type.model_fields)
        match first["type"]:
            case "missing":
                raise InputError(f'{place}: "{field}" is missing; a row has the keys {known}') from None
            case "extra_forbidden":
                raise InputError(f'{place}: "{field}" is not a key of this file; a row has the keys {known}') from None
            case "value_error":
                message = first["msg"].removeprefix("Value error, ")
                raise InputError(f'{place}: "{field}" {message}') from None
        message = first["msg"].removeprefix("Input ")
        raise InputError(f'{place}: "{field}" {message}, got {quoted(first["input"])}; mend the row') from None
