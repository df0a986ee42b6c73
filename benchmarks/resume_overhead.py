"""What resuming costs: the share of each long stage's time that goes into keeping its finished work.

`python -m benchmarks.resume_overhead WORKSPACE`, after `make repro`, runs the stages of the default run (those of m1
for the loop) once more in a folder of their own, with a clock around all that align/run/work.py and the checkpoints
of training do: lock, identity, records with their fsync, checkpoints, deleting it all. `hashing` is the time of the
thread that hashes the inputs while the model loads, part of which is in `machinery`, where the stage waits for it. The
last line is a JSON object.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from align.run import work as resume
from align.training import trainer as training
from benchmarks.workspace import ROOT, link

STAGES = (
    "evaluate m1",
    "generate_responses m1 m0",
    "judge m1 m0",
    "dpo m1 m0",
    "generate_prompts m1 m0",
    "ppo",
    "reward_model",
    "sft",
)
# Runs one stage with the clock: `python -m benchmarks.resume_overhead --one "judge m1 m0"` in the workspace.
spent = {"machinery": 0.0, "hashing": 0.0, "checkpoints": 0}


def clocked(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return the function, with its time added to what `name` has spent."""

    @wraps(function)
    def timed(*arguments: Any, **named: Any) -> Any:
        begin = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            spent[name] += time.perf_counter() - begin

    return timed


def run_stage(command: str) -> dict[str, Any]:
    """Run a stage in this process, with the clock around the machinery; return the seconds."""
    for place, name, what in (
        (resume.Work, "_open", "machinery"),
        (resume.Work, "_record", "machinery"),
        (resume.Work, "__exit__", "machinery"),
        (training, "last_checkpoint", "machinery"),
        (resume, "sha256", "hashing"),
    ):
        setattr(place, name, clocked(getattr(place, name), what))

    class ClockedPace(resume.Pace):
        def saved(self) -> None:
            super().saved()
            spent["machinery"] += self.since - self.begin
            spent["checkpoints"] += 1

    for owner in (training, import_module("stages.ppo")):
        vars(owner)["Pace"] = ClockedPace
    module, *arguments = command.split()
    main = import_module(f"stages.{module}").main
    begin = time.perf_counter()
    main(arguments, standalone_mode=False)
    return {"seconds": time.perf_counter() - begin} | spent


@click.command(help=__doc__)
@click.argument("workspace", type=click.Path(path_type=Path, file_okay=False))
@click.option("--one", help="Run this stage here, as a child does.")
def main(workspace: Path, one: str | None) -> None:
    """Run all stages, or one."""
    if one is not None:
        click.echo(json.dumps(run_stage(one)))
        return
    workspace.mkdir(parents=True)
    link(workspace, ["models/base"])
    for path in (ROOT / "models").iterdir():
        if path.name != "base":
            shutil.copytree(path, workspace / "models" / path.name)
    shutil.copytree(ROOT / "data", workspace / "data")
    shutil.copyfile(ROOT / "params.yaml", workspace / "params.yaml")
    found: dict[str, dict[str, float]] = {}
    for stage in STAGES:
        command = [sys.executable, "-m", "benchmarks.resume_overhead", str(workspace), "--one", stage]
        result = subprocess.run(
            command, cwd=workspace, env={"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True, check=True
        )
        row = json.loads(result.stdout.splitlines()[-1])
        share = row["machinery"] / row["seconds"]
        found[stage] = {key: round(value, 3) for key, value in row.items()} | {"share": round(share, 4)}
        click.echo(f"{stage}: {found[stage]}")
    click.echo(json.dumps({"largest_share": max(row["share"] for row in found.values()), "stages": found}))


if __name__ == "__main__":
    main()
