"""Settings of the plain-text track."""

from string import Formatter
from typing import Literal

from pydantic import Field, field_validator

from align.training.settings import TrainingSettings


class TextSettings(TrainingSettings):
    """Section `text` of params.yaml."""

    train: str = Field(min_length=1)
    test: str = Field(min_length=1)
    template: str
    loss: Literal["all", "label"]

    @field_validator("template")
    @classmethod
    def _ends_with_its_label(cls, template: str) -> str:
        try:
            fields = [part[1:] for part in Formatter().parse(template) if part[1] is not None]
        except ValueError:
            fields = []
        if fields != [("text", "", None), ("label_text", "", None)] or not template.endswith("{label_text}"):
            raise ValueError('a text with "{text}" once, and "{label_text}" at its end')
        return template
