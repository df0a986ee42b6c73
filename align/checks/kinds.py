"""The format of checks: what a reply to a prompt must be.

Each is a JSON object with the key `kind`, such as `{"kind": "words", "min": 3, "max": 40}`; docs/DATA.md lists them.
`align.checks.checking` decides whether a reply passes.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from align.core.language import check_language
from align.core.rows import Text

Phrases = Annotated[list[Text], Field(min_length=1)]


class _Check(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Count(_Check):
    """Base of the kinds that count pieces: from `min` to `max` of them, both inclusive; one may be left out."""

    min: int | None = Field(default=None, ge=1)
    max: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _some_number_is_allowed(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("needs min, max or both; add one")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"has min {self.min} above max {self.max}, which no reply can meet; swap them")
        return self


class Words(Count):
    """A number of words."""

    kind: Literal["words"]


class Sentences(Count):
    """A number of sentences."""

    kind: Literal["sentences"]


class Lines(Count):
    """A number of lines that are not blank."""

    kind: Literal["lines"]


class Bullets(Count):
    """A number of list items: lines that start with a bullet, or if `numbered` with a number."""

    kind: Literal["bullets"]
    numbered: bool = False


class Items(Count):
    """A number of items in a comma-separated list."""

    kind: Literal["items"]


class StartsWith(_Check):
    """The reply starts with these words."""

    kind: Literal["starts_with"]
    text: Text


class EndsWith(_Check):
    """The reply ends with these words; marks after them do not count."""

    kind: Literal["ends_with"]
    text: Text


class Contains(_Check):
    """Each of these words is in the reply, `count` times or more."""

    kind: Literal["contains"]
    words: Phrases
    count: int = Field(default=1, ge=1)


class ContainsAny(_Check):
    """At least one of these words is in the reply."""

    kind: Literal["contains_any"]
    words: Phrases


class Without(_Check):
    """None of these words is in the reply."""

    kind: Literal["without"]
    words: Phrases


class LowerCase(_Check):
    """The reply has letters, and no capital."""

    kind: Literal["lower_case"]


class UpperCase(_Check):
    """The reply has letters, all of them capitals."""

    kind: Literal["upper_case"]


class Json(_Check):
    """The reply is a JSON object with these keys and no others."""

    kind: Literal["json"]
    keys: Phrases


class OneOf(_Check):
    """The whole reply is one of these options, right or wrong."""

    kind: Literal["one_of"]
    options: Phrases


class Answer(_Check):
    """The whole reply is the right answer, in one of these forms."""

    kind: Literal["answer"]
    accepted: Phrases


class Language(_Check):
    """The reply is in this language, an ISO 639 code; reliable from a sentence on."""

    kind: Literal["language"]
    language: str

    @field_validator("language")
    @classmethod
    def _is_known(cls, code: str) -> str:
        check_language(code)
        return code


Check = Annotated[
    Words
    | Sentences
    | Lines
    | Bullets
    | Items
    | StartsWith
    | EndsWith
    | Contains
    | ContainsAny
    | Without
    | LowerCase
    | UpperCase
    | Json
    | OneOf
    | Answer
    | Language,
    Field(discriminator="kind"),
]
