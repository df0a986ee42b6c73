"""The result of one check of `align doctor`."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """A line of the report.

    `differs`: results may not be byte-identical here. `problem`: a run would stop, or work could be lost.
    """

    check: str
    status: Literal["ok", "differs", "problem"]
    what: str
    steps: tuple[str, ...] = ()  # what to do, in order; a command is in backticks

    def lines(self) -> list[str]:
        """Return it as text: one line, or a numbered list of several steps."""
        head = f"{self.status:<8} {self.check:<12} {self.what}"
        if len(self.steps) < 2:
            return ["; ".join((head, *self.steps))]
        return [f"{head}:", *(f"{'':<22}{number}. {step}" for number, step in enumerate(self.steps, 1))]
