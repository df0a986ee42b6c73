"""Puts the time before each line that it reads: seconds since 1970, as benchmarks.estimate wants a log.

Run with `PYTHONUNBUFFERED=1 make repro 2>&1 | python -m benchmarks.timestamps > repro.log`.
"""

import sys
import time
from collections.abc import Iterable, Iterator


def stamped(lines: Iterable[str]) -> Iterator[str]:
    """Yield each line behind the time at which it came."""
    for line in lines:
        yield f"{time.time():.3f} {line.rstrip()}\n"


if __name__ == "__main__":
    # A progress bar ends its lines with a carriage return, of which sys.stdin itself makes no line.
    with open(sys.stdin.fileno(), encoding="utf-8", errors="replace", closefd=False) as stream:
        for text in stamped(stream):
            sys.stdout.write(text)
            sys.stdout.flush()
