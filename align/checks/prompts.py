"""Rows of prompts with checks, the file `prepare_data.checked_prompts`."""

from typing import Self

from pydantic import Field, model_validator

from align.checks.kinds import Check, Contains, Without
from align.core.errors import quoted
from align.core.rows import Row, Text


class CheckedPrompt(Row):
    """A held-out prompt and what the reply must be; the reply has to pass all checks."""

    id: Text
    prompt: Text
    checks: list[Check] = Field(min_length=1)

    @model_validator(mode="after")
    def _some_reply_passes(self) -> Self:
        kinds = [check.kind for check in self.checks]
        if "lower_case" in kinds and "upper_case" in kinds:
            raise ValueError("checks lower_case and upper_case exclude each other; remove one")
        wanted = {word.casefold() for check in self.checks if isinstance(check, Contains) for word in check.words}
        unwanted = {word.casefold() for check in self.checks if isinstance(check, Without) for word in check.words}
        if both := wanted & unwanted:
            raise ValueError(f"checks contains and without both have {quoted(min(both))}; remove it from one")
        return self
