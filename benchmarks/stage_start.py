"""Seconds that each stage needs to start.

A stage imports part of what it needs inside functions, so the time of `--help` or of an import says too little.
Instead each stage runs for real on a tiny random model: the project is cloned and reproduced once with the settings of
the tests, then the command of each stage in dvc.lock is timed, without DVC, in a fresh process. That wall time is
nearly all start: Python, imports, reading params and a model of 100 kB. The rows and steps that follow take part of a
second in most stages; they are the same on both sides, so a ratio is nearer to 1 than that of the bare starts.

`--against` takes a commit of this project or another clone of it, and runs both in turns.

Run with `python -m benchmarks.stage_start WORKSPACE`; the project must be committed. The last line is one JSON object.
"""

import json
import os
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import click
from ruamel.yaml import YAML

from benchmarks.workspace import ROOT, project_environment, tiny_clone
from tests.pipeline.test_repro import SMALL


def reproduced(folder: Path, source: Path, revision: str, environment: dict[str, str]) -> dict[str, str]:
    """Clone the project, unless `folder` is there, and reproduce it; return one command for each kind of stage."""
    if not folder.exists():
        tiny_clone(folder, SMALL, source, revision)
    click.echo(f"dvc repro in {folder}")
    with (folder / "repro.log").open("w", encoding="utf-8") as log:
        subprocess.run(["dvc", "repro"], cwd=folder, env=environment, stdout=log, stderr=log, check=True)
    lock = YAML(typ="safe").load(folder / "dvc.lock")
    commands: dict[str, str] = {}
    for name, stage in lock["stages"].items():
        commands.setdefault(name.partition("@")[0], stage["cmd"])
    return commands


@click.command(help=__doc__)
@click.argument("workspace", type=click.Path(path_type=Path, file_okay=False))
@click.option("--against", metavar="COMMIT|CLONE", help="Another version, measured in turns with this one.")
@click.option("--stage", "chosen", multiple=True, help="Only this stage.  [default: one of each kind]")
@click.option("--rounds", default=3, show_default=True)
def main(workspace: Path, against: str | None, chosen: tuple[str, ...], rounds: int) -> None:
    """Measure."""
    # Byte code is kept, as `make repro` keeps it: compiling it in each process would be most of the time.
    environment = project_environment() | {"ALIGN_DEVICE_LOCK": "0"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    sources = {"here": (ROOT, "HEAD")}
    if against is not None:
        sources["against"] = (Path(against).resolve(), "HEAD") if os.path.isdir(against) else (ROOT, against)
    commands = {
        side: reproduced((workspace / side).absolute(), source, revision, environment)
        for side, (source, revision) in sources.items()
    }
    result: dict[str, dict[str, float]] = {}
    for stage in chosen or commands["here"]:
        seconds: dict[str, list[float]] = {side: [] for side in sources if stage in commands[side]}
        for _ in range(rounds):
            for side, values in seconds.items():
                begin = time.perf_counter()
                where: dict[str, Any] = {"cwd": workspace / side, "env": environment}
                subprocess.run(commands[side][stage], **where, shell=True, check=True, capture_output=True)
                values.append(time.perf_counter() - begin)
        result[stage] = {side: round(statistics.median(values), 2) for side, values in seconds.items()}
        if "here" in seconds and "against" in seconds:
            result[stage]["ratio"] = round(result[stage]["here"] / result[stage]["against"], 3)
        click.echo(f"{stage:20}" + "".join(f"  {side} {value:6.2f}" for side, value in result[stage].items()))
    ratios = [row["ratio"] for row in result.values() if "ratio" in row]
    click.echo(json.dumps({"median_ratio": statistics.median(ratios) if ratios else None, "stages": result}))


if __name__ == "__main__":
    main()
