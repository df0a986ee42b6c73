"""Kill whole runs at random moments, resume them, and compare every output with that of an undisturbed run.

`python -m benchmarks.kills WORKSPACE` clones the committed project and gives it a tiny random model. For each seed one
clone runs `dvc repro` undisturbed. In another, DVC and its stage get SIGKILL while a randomly drawn stage runs, at a
moment drawn from the time that it took in the first, and `dvc repro` follows. With `--finished CLONE`, in which `make
repro` has run, five of its stages run again in a copy and get a kill each: the real model, in minutes.

The last line is a JSON object: `kills`, `equal` (kills after which the outputs of the stage that was hit have the
hashes of the undisturbed run), `rows_recovered` (rows on disk at a kill that the resumed stage took over) and
`rows_repeated` (those that it computed again).
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from ruamel.yaml import YAML

from benchmarks.workspace import project_environment, tiny_clone
from tests.pipeline.test_repro import SMALL

# More batches, steps and updates than the tests need, so that a kill falls between two of them. The rates are so small
# that the model stays random: one that has learned a little writes no prompt that ends.
TESTED: dict[str, Any] = dict(SMALL)
TINY: dict[str, Any] = TESTED | {
    "runtime": {"num_threads": 1, "batch_size": 4},
    "eft": TESTED["eft"] | {"num_train_epochs": 0.5, "learning_rate": 1e-6},
    "sft": TESTED["sft"] | {"num_train_epochs": 1, "learning_rate": 1e-6},
    "generate_prompts": TESTED["generate_prompts"] | {"num_prompts": 16},
    "generate_responses": TESTED["generate_responses"] | {"num_responses": 4, "max_new_tokens": 96},
    "dpo": TESTED["dpo"] | {"per_device_train_batch_size": 1, "num_train_epochs": 3, "learning_rate": 1e-6},
    "reward_model": TESTED["reward_model"] | {"per_device_train_batch_size": 2, "num_train_epochs": 1},
    "ppo": TESTED["ppo"] | {"num_updates": 12},
    "evaluate": TESTED["evaluate"] | {"max_new_tokens": 48},
}
# What `--finished` kills.
FINISHED_STAGES = ("generate_prompts@m1", "generate_responses@m1", "judge@m1", "dpo@m1", "ppo")
SECONDS = (5.0, 25.0)  # after which, at least and at most


@dataclass
class Kill:
    """One kill: which stage was running, for how long, and how many of its rows were on disk."""

    stage: str
    seconds: float
    rows: int


@dataclass
class Clone:
    """A clone of the project, and `dvc repro` in it."""

    path: Path
    durations: dict[str, float] = field(default_factory=dict)
    starts: Counter[str] = field(default_factory=Counter)
    kills: list[Kill] = field(default_factory=list)
    fixed: int = 0  # problems that `align doctor` found

    @property
    def log(self) -> Path:
        """The output of `dvc repro`."""
        return self.path.parent / f"{self.path.name}.log"

    def run(
        self, until: Callable[[str], float | None] = lambda stage: None, arguments: Sequence[str] = ()
    ) -> Kill | None:
        """Reproduce. When `until` gives seconds for a stage that has begun, kill all after them; None: it finished."""
        read = self.log.stat().st_size if self.log.exists() else 0
        env, command = project_environment() | {"PYTHONUNBUFFERED": "1"}, ["dvc", "repro", *arguments]
        with self.log.open("ab") as out:
            process = subprocess.Popen(
                command, cwd=self.path, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        stage, since, moment = "", time.monotonic(), None
        while process.poll() is None:
            time.sleep(0.01)
            whole, _, _ = self.log.read_bytes()[read:].rpartition(b"\n")
            read += len(whole)
            for line in whole.decode(errors="replace").splitlines():
                if line.startswith("Running stage '"):
                    now = time.monotonic()
                    if stage:
                        self.durations.setdefault(stage, now - since)
                    stage, since = line.split("'")[1], now
                    self.starts[stage] += 1
                    if moment is None and (wait := until(stage)) is not None:
                        moment = now + wait
            if moment is not None and time.monotonic() >= moment:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                kill = Kill(stage, time.monotonic() - since, self.finished_rows(stage))
                click.echo(f"  killed in {kill.stage} after {kill.seconds:.1f} s, {kill.rows} rows of it on disk")
                self.kills.append(kill)
                return kill
        if process.returncode:
            if not self.fix():
                raise click.ClickException(f"dvc repro failed, see {self.log}")
            return self.run(until, arguments)
        if stage:
            self.durations.setdefault(stage, time.monotonic() - since)
        return None

    def fix(self) -> bool:
        """Do what `align doctor` says; return whether it said anything.

        DVC writes dvc.lock and its rwlock in place. A kill may leave half of such a file, at which DVC stops.
        """
        doctor = [sys.executable, "-m", "align.cli.main", "doctor", "--json"]
        done = subprocess.run(doctor, cwd=self.path, env=project_environment(), capture_output=True, check=False)
        problems = [finding for finding in json.loads(done.stdout) if finding["status"] == "problem"]
        for finding in problems:
            click.echo(f"  {finding['check']}: {finding['what']}")
            for command in re.findall(r"`(.+?)`", " ".join(finding["mend"])):
                if command != "dvc repro":
                    subprocess.run(command, shell=True, cwd=self.path, check=True)
        self.fixed += len(problems)
        return bool(problems)

    def finished_rows(self, stage: str) -> int:
        """Return how many rows of a stage are on disk; a line without an end is none."""
        folder = self.path / ".align/resume" / stage.replace("evaluate_iteration@", "evaluate@")
        found = [
            (request, number)
            for file in folder.rglob("rows-*.jsonl")
            for line in file.read_text().splitlines(keepends=True)
            if line.endswith("\n")
            for request, values in [json.loads(line)]
            if request != "max_batch_tokens"  # no row: how the batches were cut
            for number, _ in values
        ]
        if len(set(found)) < len(found):
            raise click.ClickException(f"{folder}: a row was computed twice")
        return len(found)

    def recovered_rows(self) -> int:
        """Return how many rows the stages that ended took over from killed ones, by their own log."""
        log = self.path / ".align/log/generation.jsonl"
        return sum(json.loads(line)["recovered"] for line in log.read_text().splitlines()) if log.exists() else 0

    def outs(self) -> dict[str, dict[str, str]]:
        """Return the hash of each output of each stage, from dvc.lock."""
        lock = YAML(typ="safe").load((self.path / "dvc.lock").read_text(encoding="utf-8"))
        return {name: {out["path"]: out["md5"] for out in entry["outs"]} for name, entry in lock["stages"].items()}


def compare(clone: Clone, expected: Mapping[str, Mapping[str, str]], recovered_before: int = 0) -> dict[str, int]:
    """Compare a clone that was killed and resumed with the hashes of the undisturbed one."""
    outs = clone.outs()
    # Of several kills of one run of a stage, the last has the rows of all. A stage that did not start again was done.
    last = {kill.stage: kill.rows for kill in clone.kills}
    hits = Counter(kill.stage for kill in clone.kills)
    finished = sum(rows for stage, rows in last.items() if clone.starts[stage] > hits[stage])
    recovered = clone.recovered_rows() - recovered_before
    return {
        "fixed_by_doctor": clone.fixed,
        "kills": len(clone.kills),
        "equal": sum(expected[kill.stage] == outs[kill.stage] for kill in clone.kills),
        "rows_recovered": recovered,
        "rows_repeated": max(0, finished - recovered),
    }


def kill_whole_runs(workspace: Path, kills: int, seeds: int, rng: random.Random) -> Counter[str]:
    """Kill runs of the tiny model, each against an undisturbed one of the same seed."""
    totals: Counter[str] = Counter()
    number = 0
    while totals["kills"] < kills:
        seed, number = 17 + number, number + 1
        plain, clone = (
            Clone(tiny_clone(workspace / f"{seed}-{kind}", TINY | {"seed": seed})) for kind in ("plain", "killed")
        )
        plain.run()
        stages = list(plain.durations)
        click.echo(f"seed {seed}: undisturbed run, {len(stages)} stages, {sum(plain.durations.values()):.0f} s")
        share = min(kills - totals["kills"], -(-kills // seeds))
        # Long stages are hit more often, as they would be.
        targets = rng.choices(stages, weights=list(plain.durations.values()), k=share)
        for target in sorted(targets, key=stages.index):
            # If the target has finished before the kill, the stage that runs next is hit.
            waits = {name: rng.uniform(0, plain.durations[name]) for name in stages[stages.index(target) :]}
            if clone.run(waits.get) is None:
                break
        clone.run()
        same = (plain.path / "dvc.lock").read_bytes() == (clone.path / "dvc.lock").read_bytes()
        click.echo(f"  dvc.lock: {'equal to the byte' if same else 'DIFFERS'}")
        totals.update(compare(clone, plain.outs()))
    return totals


def kill_finished(workspace: Path, finished: Path, rng: random.Random) -> Counter[str]:
    """Run stages of a finished clone again in a copy, kill each once, and resume."""
    shutil.copytree(finished, workspace / "killed", symlinks=True, ignore=shutil.ignore_patterns(".venv"))
    clone = Clone(workspace / "killed")
    expected, recovered = clone.outs(), clone.recovered_rows()
    for stage in FINISHED_STAGES:
        force, most = ("--force", "--single-item", stage), SECONDS[1]
        while clone.run({stage: rng.uniform(SECONDS[0], most)}.get, force) is None:
            most = (SECONDS[0] + most) / 2  # it had finished
        clone.run(arguments=force)
    return Counter(compare(clone, expected, recovered))


@click.command(help=__doc__)
@click.argument("workspace", type=click.Path(path_type=Path, file_okay=False))
@click.option("--kills", default=30, show_default=True, help="How many, over all seeds.")
@click.option("--seeds", default=3, show_default=True, help="Pairs of runs, at least.")
@click.option("--finished", metavar="CLONE", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--draw", default=0, show_default=True, help="The seed of stages and moments.")
def main(workspace: Path, kills: int, seeds: int, finished: Path | None, draw: int) -> None:
    """Run it."""
    workspace.mkdir(parents=True)
    rng = random.Random(draw)
    if finished is None:
        totals = kill_whole_runs(workspace, kills, seeds, rng)
    else:
        totals = kill_finished(workspace, finished, rng)
    click.echo(json.dumps(totals))


if __name__ == "__main__":
    main()
