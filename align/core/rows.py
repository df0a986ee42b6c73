"""The rows that stages exchange, and their strict JSONL reader and writer."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import jsonlines
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from align.core.errors import InputError, quoted
from align.core.files import replacing
from align.core.jsonl import dumps, read_objects


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty: write the text or delete the row")
    return text


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Text = Annotated[str, AfterValidator(_not_blank)]
Whole = Annotated[int, BeforeValidator(_whole)]  # pandas writes a column of whole numbers with gaps as 0.0, 1.0
FinishReason = Literal["stop", "length"]


FETCHED = Path("data/sources")  # files of stage fetch_data: rows of others, and every cell of a CSV file a text


class Row(BaseModel):
    """Base of every row: frozen, no unknown keys, no type conversion."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Message(Row):
    """One turn of a conversation, as chat templates expect it."""

    role: Literal["system", "user", "assistant"]
    content: Text


class Instruction(Row):
    """Seed data and IFT: a prompt and the completion to learn, after the conversation's turns up to there, if any.

    Generated rows also have their iteration, their score and the judge that gave it.
    """

    id: Text
    category: Text
    history: list[Message] = []
    prompt: Text
    completion: Text
    source: Literal["seed", "generated"] = "seed"
    iteration: str | None = None
    score: float | None = None
    judge: str | None = None

    @property
    def messages(self) -> list[Message]:
        """The conversation that the completion replies to."""
        return [*self.history, Message.model_construct(role="user", content=self.prompt)]


class Judgement(Row):
    """Seed data and EFT: a response to a question, its score on the additive 5-point scale, and why.

    `rank` is the human rank among the question's responses, 0 = best, if there is one.
    """

    question_id: Text
    category: Text
    prompt: Text
    response: Text
    score: Whole = Field(ge=0, le=5)
    justification: Text | None = None
    rank: Whole | None = Field(default=None, ge=0)


class Transcript(Row):
    """A pair in Anthropic's hh-rlhf format: two transcripts with `\\n\\nHuman:` and `\\n\\nAssistant:` turns."""

    chosen: Text
    rejected: Text


class EvalPrompt(Row):
    """A held-out conversation: the user's turns, as in MT-Bench."""

    id: Text
    category: Text
    turns: list[Text] = Field(min_length=1)


class Prompt(Row):
    """A conversation to reply to."""

    id: Text
    messages: list[Message] = Field(min_length=1)


class TaskPrompt(Row):
    """A prompt to reply to in stage ppo: a text or a conversation, and any other columns, which checkers get."""

    model_config = ConfigDict(extra="allow")

    id: Text
    prompt: Text | None = None
    messages: list[Message] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _has_one_prompt(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError('needs either "prompt", a text, or "messages", a conversation; write one of them')
        return self

    @property
    def conversation(self) -> list[Message]:
        """The conversation to reply to."""
        return self.messages or [Message.model_construct(role="user", content=self.prompt or "")]

    @property
    def columns(self) -> dict[str, Any]:
        """The other columns."""
        return self.model_extra or {}


class KnownPrompt(Row):
    """A prompt of the seed data, or one that an iteration up to this one wrote."""

    prompt: Text
    source: Literal["seed", "generated"]
    iteration: str | None = None


class PreferencePair(Row):
    """Two replies to one conversation; `margin` is the difference of their scores, if they have any.

    A reply that was cut off (`length`) gets no EOS in training.
    """

    id: Text
    messages: list[Message] = Field(min_length=1)
    chosen: Text
    rejected: Text
    chosen_finish_reason: FinishReason = "stop"
    rejected_finish_reason: FinishReason = "stop"
    margin: float | None = None


def _turn_of(role: str) -> BeforeValidator:
    return BeforeValidator(lambda value: [{"role": role, "content": value}] if isinstance(value, str) else value)


def _by_user(messages: list[Message]) -> list[Message]:
    if messages[-1].role != "user":
        raise ValueError("does not end with a turn of the user; end it with one")
    return messages


def _one_reply(messages: list[Message]) -> list[Message]:
    if [message.role for message in messages] != ["assistant"]:
        raise ValueError("should be one turn of the assistant; move the turns before it to the prompt")
    return messages


class UnpairedPreference(Row):
    """A reply that is desirable (`label` true) or not, in TRL's layout; prompt and completion may also be texts."""

    id: Text | None = None
    prompt: Annotated[list[Message], Field(min_length=1), AfterValidator(_by_user), _turn_of("user")]
    completion: Annotated[list[Message], AfterValidator(_one_reply), _turn_of("assistant")]
    label: bool

    @property
    def reply(self) -> str:
        """The text of the completion."""
        return self.completion[0].content


class ScoredPair(Row):
    """A reward model's scores of a held-out pair, and of its chosen reply cut off; token counts include the EOS."""

    id: Text
    chosen_score: float
    rejected_score: float
    truncated_scores: list[float] = []
    chosen_tokens: int = Field(ge=1)
    rejected_tokens: int = Field(ge=1)


class TrainingSample(Row):
    """The answer to a prompt after `update` updates of training, and its reward."""

    id: Text
    update: int = Field(ge=0)
    prompt: Text
    response: str
    finish_reason: FinishReason
    score: float


class Response(Row):
    """One of the N sampled replies to a prompt; `sample` counts from 0. The text may be empty."""

    id: Text
    sample: int = Field(ge=0)
    prompt: Text
    response: str
    finish_reason: FinishReason
    num_tokens: int = Field(ge=0)


class ScoredResponse(Response):
    """A response with its judgement. A failed judgement is `score: null` and a `failure`, never a number.

    `digit_mass` is the judge's total probability of the digits 0-5, `entropy` the entropy of the digits in nats; both
    are null in modes other than logits. `judgements` holds the judge's texts in sample mode.
    """

    score: float | None = Field(ge=0, le=5)
    failure: str | None
    digit_mass: float | None
    entropy: float | None
    judgements: list[str]


class AnchorScore(Row):
    """A model's judgement of a held-out judged response (an anchor; the anchors are the same for every model).

    `number` counts the responses of a question from 0; `score` is the human score.
    """

    question_id: Text
    number: int = Field(ge=0)
    score: int = Field(ge=0, le=5)
    predicted: float | None
    failure: str | None


class Answer(Row):
    """A model's reply to a held-out prompt, with all that `evaluate` measures on it.

    `kl_to_base` is in nats per token, `kl_to_m0` in nats per response.
    """

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
    kl_to_m0: float


class CheckedAnswer(Row):
    """A model's reply to a prompt of `CheckedPrompt`, and which of its checks pass, in their order."""

    id: Text
    prompt: Text
    response: str
    finish_reason: FinishReason
    num_tokens: int = Field(ge=0)
    strict: list[bool] = Field(min_length=1)
    loose: list[bool] = Field(min_length=1)


R = TypeVar("R", bound=Row)


def read_rows(path: Path, row_type: type[R], *, unique: Sequence[str] = (), allow_empty: bool = False) -> list[R]:
    """Read a JSONL file into rows; the values of the fields `unique`, taken together, must differ between rows."""
    return [row for _, row in read_numbered_rows(path, row_type, unique=unique, allow_empty=allow_empty)]


def read_numbered_rows(
    path: Path, row_type: type[R], *, unique: Sequence[str] = (), allow_empty: bool = False
) -> list[tuple[int, R]]:
    """Read a JSONL file into (line number, row) pairs; see `read_rows`."""
    rows: list[tuple[int, R]] = []
    seen: dict[tuple[object, ...], int] = {}
    for number, value in read_objects(path):
        row = parse_row(f"{path}:{number}", value, row_type, path.parent == FETCHED)
        key = tuple(getattr(row, field) for field in unique)
        if unique and key in seen:
            what = ", ".join(f"{field} {quoted(value)}" for field, value in zip(unique, key, strict=True))
            raise InputError(f"{path}:{number}: duplicate {what}, first used in line {seen[key]}; make it unique")
        seen[key] = number
        rows.append((number, row))
    if not rows and not allow_empty:
        raise InputError(f"{path}: has no rows; at least one is needed")
    return rows


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSONL, atomically."""
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8") as stream,
        jsonlines.Writer(stream, dumps=dumps) as writer,
    ):
        for row in rows:
            writer.write(row.model_dump(mode="json"))


def parse_row(place: str, value: dict[str, Any], row_type: type[R], fetched: bool = False) -> R:
    """Return a row; `place` is for messages. In a `fetched` row, the texts "4" and "true" are a number and a truth."""
    try:
        return row_type.model_validate(value, strict=False if fetched else None)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = json.dumps(".".join(str(part) for part in first["loc"])[:100])[1:-1]
        in_row = len(first["loc"]) == 1
        keys = f"a row has the keys {', '.join(row_type.model_fields)}"
        match first["type"]:
            case "missing":
                raise InputError(f'{place}: "{field}" is missing; {keys if in_row else "add it"}') from None
            case "extra_forbidden":
                advice = f"of this file; {keys}" if in_row else "there; remove it or correct its name"
                raise InputError(f'{place}: "{field}" is not a key {advice}') from None
            case "union_tag_not_found":
                name = first["ctx"]["discriminator"].strip("'")
                raise InputError(f'{place}: "{field}" has no "{name}"; add it (docs/DATA.md lists them)') from None
            case "union_tag_invalid":
                tag, known = quoted(first["ctx"]["tag"]), first["ctx"]["expected_tags"]
                raise InputError(f'{place}: "{field}" has the unknown kind {tag}; write one of {known}') from None
            case "value_error":
                message = first["msg"].removeprefix("Value error, ")
                raise InputError(f'{place}: "{field}" {message}' if field else f"{place}: {message}") from None
        message = first["msg"].removeprefix("Input ")
        raise InputError(f'{place}: "{field}" {message}, got {quoted(first["input"])}; fix the row') from None
