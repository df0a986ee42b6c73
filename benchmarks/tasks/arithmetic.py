"""The data of recipe rlvr-arithmetic: data/seed/arithmetic_train.jsonl and arithmetic_test.jsonl.

Additions and subtractions of two numbers from 1 to 20; a reply passes if it ends with the right number. The two files
share no pair of operands in either order, so a model cannot pass the test by heart. Run with
`python -m benchmarks.tasks.arithmetic`; it always writes the same bytes.
"""

import random
from collections.abc import Iterator
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

from align.core.files import write_text
from align.core.jsonl import dumps

SEED, LARGEST, TEST_ROWS = 17, 20, 200
PROMPT = "What is {}? Reply with just the number."


def sums(a: int, b: int) -> Iterator[tuple[str, int]]:
    """Yield the sums of two operands, a at most b, and their results, none of which is negative."""
    yield f"{a} + {b}", a + b
    if a != b:
        yield f"{b} + {a}", a + b
    yield f"{b} - {a}", b - a


def rows() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows to train on and those to test with."""
    rng = random.Random(SEED)
    pairs = list(combinations_with_replacement(range(1, LARGEST + 1), 2))
    rng.shuffle(pairs)
    test: list[tuple[str, int]] = []
    while len(test) < TEST_ROWS:
        test += sums(*pairs.pop())
    train = [one for pair in pairs for one in sums(*pair)]
    rng.shuffle(train)
    rng.shuffle(test)
    named = {"train": train, "test": test[:TEST_ROWS]}
    made = {
        name: [
            {"id": f"{name}-{i:03}", "prompt": PROMPT.format(text), "answer": str(result)}
            for i, (text, result) in enumerate(part, 1)
        ]
        for name, part in named.items()
    }
    checked = [
        {"id": row["id"], "prompt": row["prompt"], "checks": [{"kind": "ends_with", "text": row["answer"]}]}
        for row in made["test"]
    ]
    return made["train"], checked


def texts() -> dict[str, str]:
    """Return the content of each file, by its name in data/seed."""
    parts = zip(("arithmetic_train.jsonl", "arithmetic_test.jsonl"), rows(), strict=True)
    return {name: "".join(dumps(row) + "\n" for row in part) for name, part in parts}


def main() -> None:
    """Write the files."""
    for name, text in texts().items():
        write_text(Path("data/seed") / name, text)


if __name__ == "__main__":
    main()
