"""What one check of `align doctor` found."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["ok", "differs", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    `differs`: results may have other bytes here, or nothing can be promised. `problem`: a run would stop, or work would
    be lost. `mend` holds what to do, a step each.
    """

    check: str
    status: Status
    what: str
    mend: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return it as text: one line, or a line for each of several steps."""
        head = f"{self.status:<8} {self.check:<12} {self.what}"
        if len(self.mend) < 2:
            return ["; ".join((head, *self.mend))]
        return [f"{head}:", *(f"{'':<22}{number}. {step}" for number, step in enumerate(self.mend, 1))]
