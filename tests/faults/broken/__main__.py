"""Print the table of docs/DATA.md: the kinds of broken input, and how many of each.

Run with `python -m tests.faults.broken`.
"""

import sys
from collections import Counter

from tests.faults.broken import CASES


def table() -> str:
    """Return the table, in Markdown."""
    counts = Counter(case.kind for case in CASES)
    return "\n".join(["| kind | cases |", "|---|---|", *(f"| {kind} | {count} |" for kind, count in counts.items())])


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
