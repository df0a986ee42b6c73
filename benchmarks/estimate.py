"""How near `align estimate` is to the measured time of each stage of a whole run.

Run with `python -m benchmarks.estimate CLONE` in a fresh clone's neighbourhood: it sets the clone up, estimates
before anything is built, runs `dvc repro` with a clock at each line, and compares. The log and the estimate stay in
CLONE/.align/. Or compare a log of benchmarks.timestamps: `python -m benchmarks.estimate CLONE --log
repro.log`. The last line is JSON.
"""

import json
import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from benchmarks.timestamps import stamped

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
            raise click.ClickException(f"no time before {line[:80]!r}; see benchmarks.timestamps") from None
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


def _estimate(clone: Path) -> dict[str, Any]:
    python = clone / ".venv/bin/python"
    command = [str(python.absolute()), "-m", "align.cli.main", "estimate", "--device", "cpu", "--json"]
    done = subprocess.run(command, cwd=clone, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _reproduce(clone: Path, log: Path) -> None:
    environment = os.environ | {
        "PYTHONUNBUFFERED": "1",
        "PATH": f"{(clone / '.venv/bin').absolute()}:{os.environ['PATH']}",
    }
    command = ["dvc", "repro"]
    with (
        subprocess.Popen(
            command, cwd=clone, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
        log.open("w", encoding="utf-8") as stream,
    ):
        assert process.stdout is not None
        for line in stamped(process.stdout):
            stream.write(line)
            stream.flush()
            if RUNNING.search(line):
                click.echo(line.rstrip())
    if process.returncode:
        raise click.ClickException(f"dvc repro failed; {log} has what it said")


@click.command(help=__doc__)
@click.argument("clone", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--log", type=click.Path(path_type=Path, dir_okay=False), help="Of a run before; nothing is run.")
@click.option("--estimate", "saved", type=click.Path(path_type=Path), help="Made before, with --json.")
def main(clone: Path, log: Path | None, saved: Path | None) -> None:
    """Measure or read a run, and compare."""
    ran = log is None
    if log is None:
        subprocess.run(["make", "setup"], cwd=clone, check=True)
        (clone / ".align").mkdir(exist_ok=True)
        log, saved = clone / ".align/repro.log", clone / ".align/estimate.json"
        saved.write_text(json.dumps(_estimate(clone)), encoding="utf-8")
        _reproduce(clone, log)
    found = _estimate(clone) if saved is None else json.loads(saved.read_text(encoding="utf-8"))
    estimated = {stage["stage"]: stage["seconds"] for stage in found["stages"]}
    with log.open(encoding="utf-8", newline="\n") as stream:
        measured = measured_seconds(stream)
    result = compare(estimated, measured)
    click.echo(f"{'stage':24} {'estimated':>10} {'measured':>10} {'ratio':>6}")
    for stage, ratio in result["ratios"].items():
        click.echo(f"{stage:24} {estimated[stage]:8.1f} s {measured[stage]:8.1f} s {ratio:6.2f}")
    if ran:
        click.echo(f"log: {log}; estimate: {saved}")
    click.echo(json.dumps(result))


if __name__ == "__main__":
    main()
