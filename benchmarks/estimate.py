"""Compare `align estimate` with the measured time of each stage of a whole run.

In a fresh clone, before anything is built:


  align estimate --device cpu --calibrate --json > estimate.json
  PYTHONUNBUFFERED=1 make repro 2>&1 | python -m benchmarks.estimate stamp > repro.log
  python -m benchmarks.estimate compare estimate.json repro.log

The last line is one JSON object with the worst ratio.
"""

import json
import re
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

RUNNING = re.compile(r"Running stage '([^']+)'")
# Stages that did not run, and what DVC says when all is done.
OTHERS = re.compile(r"Stage '[^']+' (?:didn't change|is cached)|To track the changes with git|Use `dvc push`")


def measured_seconds(lines: Iterable[str]) -> dict[str, float]:
    """Return each stage's seconds, from its first line to that of what comes next, by a log with times."""
    found: dict[str, float] = {}
    stage, begun, last = "", 0.0, 0.0
    for line in lines:
        stamp, _, text = line.partition(" ")
        try:
            last = float(stamp)
        except ValueError:
            raise click.ClickException(f"no time before {line[:80]!r}; see `stamp`") from None
        running = RUNNING.search(text)
        if stage and (running or OTHERS.search(text)):
            found[stage] = last - begun
            stage = ""
        if running:
            stage, begun = running[1], last
    if stage:
        found[stage] = last - begun
    return found


def compare(estimated: Mapping[str, float], measured: Mapping[str, float]) -> dict[str, Any]:
    """Return the ratio of estimate and measurement of each stage that ran, and the worst: above 1, either way."""
    ratios = {stage: estimated[stage] / seconds for stage, seconds in measured.items() if stage in estimated}
    if not ratios:
        raise click.ClickException("the log names no stage that is estimated: did all of them run?")
    off = {stage: max(ratio, 1 / ratio) for stage, ratio in ratios.items()}
    worst = max(off, key=lambda stage: off[stage])
    totals = [sum(values[stage] for stage in ratios) for values in (estimated, measured)]
    return {
        "worst_ratio": round(off[worst], 3),
        "worst_stage": worst,
        "within_1.5": sum(value <= 1.5 for value in off.values()),
        "stages": len(off),
        "not_estimated": sorted(set(measured) - set(estimated)),
        "total": {"estimated": round(totals[0], 1), "measured": round(totals[1], 1)},
        "ratios": {stage: round(ratio, 3) for stage, ratio in ratios.items()},
    }


@click.group(help=__doc__)
def main() -> None:
    """Name what the two commands share."""


@main.command()
def stamp() -> None:
    """Put the time before each line of the input: seconds since 1970."""
    # A progress bar ends its lines with a carriage return, of which sys.stdin itself makes no line.
    with open(sys.stdin.fileno(), encoding="utf-8", errors="replace", closefd=False) as stream:
        for line in stream:
            click.echo(f"{time.time():.3f} {line.rstrip()}")


@main.command("compare")
@click.argument("estimate", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("log", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def compare_files(estimate: Path, log: Path) -> None:
    """Compare an estimate with a stamped log."""
    stages = json.loads(estimate.read_text(encoding="utf-8"))["stages"]
    estimated = {stage["stage"]: stage["seconds"] for stage in stages}
    with log.open(encoding="utf-8", newline="\n") as stream:
        measured = measured_seconds(stream)
    result = compare(estimated, measured)
    click.echo(f"{'stage':24} {'estimated':>10} {'measured':>10} {'ratio':>6}")
    for stage, ratio in result["ratios"].items():
        click.echo(f"{stage:24} {estimated[stage]:8.1f} s {measured[stage]:8.1f} s {ratio:6.2f}")
    click.echo(json.dumps(result))


if __name__ == "__main__":
    main()
