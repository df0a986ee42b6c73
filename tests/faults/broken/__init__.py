"""Broken inputs, each with the command that reads it and what the message must name."""

from tests.faults.broken import models, params, prompts, rows, sources, tables
from tests.faults.broken.workspace import Case

CASES: list[Case] = [
    *rows.cases(),
    *sources.cases(),
    *params.cases(),
    *prompts.cases(),
    *models.cases(),
    *tables.cases(),
]
