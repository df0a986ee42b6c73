"""Print the table of docs/DATA.md: the kinds of broken input, how many, and what one of each gets.

Run with `python -m tests.faults.broken`.
"""

import os
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.faults.broken import CASES
from tests.faults.broken.workspace import build, run

# The case that stands for its kind, where it is not the first.
EXAMPLES = {
    "data file": "gzip",
    "params.yaml": "a section twice",
    "parameter": "eft.learning_rate: 'nan'",
    "source": "not pinned",
    "instructions in other formats": "no completion",
    "checker": "a score of 6",
    "base model": "a tensor missing",
    "base model as source": "a pickle in place of safetensors",
    "adapter": "weights with NaN, judge",
    "reward model": "a model without a score head",
    "JSON of a stage": "a key missing within",
    "CSV of a stage": "data/ppo/history.csv: a cell missing",
    "answers of models": "answers to other prompts",
    "command line": "iterate: --max 0",
}


def table(whole: Path, workspace: Path) -> str:
    """Return the table, in Markdown; `workspace`, the working directory, is written anew from `whole` for each kind."""
    lines = ["| kind | cases | one of them | what it gets |", "|---|---|---|---|"]
    for kind, count in Counter(case.kind for case in CASES).items():
        case = next(case for case in CASES if case.kind == kind and case.name == EXAMPLES.get(kind, case.name))
        shutil.rmtree(workspace)
        shutil.copytree(whole, workspace)
        os.chdir(workspace)
        case.breaks()
        message = run(case.command).stderr.splitlines()[-1].replace("|", "\\|")
        lines.append(f"| {kind} | {count} | {case.name} | `` {message} `` |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as scratch:
        whole = build(Path(scratch) / "whole")
        workspace = Path(scratch) / "workspace"
        shutil.copytree(whole, workspace)
        sys.path.insert(0, str(workspace))
        sys.stdout.write(table(whole, workspace) + "\n")


if __name__ == "__main__":
    main()
