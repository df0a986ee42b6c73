"""Kill the whole run at random moments, go on each time, and compare every output with a run that nobody killed.

`python -m benchmarks.kills WORKSPACE` takes clones of the committed project with a tiny random model. For each seed one
clone runs `dvc repro` undisturbed; in the other, DVC and its stage get SIGKILL while a stage drawn at random runs, at a
moment drawn from the time that it took in the first, and `dvc repro` follows. With `--finished CLONE`, in which `make
repro` has run, five of its stages run once more in a copy and get a kill each: the real model, in minutes.

The last line is a JSON object: `kills`, `equal` (kills after which the outputs of the stage that was hit have the
hashes of the undisturbed run), `rows_repeated` (rows that were on disk when a kill came and were computed again) and
`rows_in_flight` (rows that a kill met computed and not yet written: those of the batch under way, computed again).
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import click
from ruamel.yaml import YAML

from benchmarks.workspace import ROOT, write_params
from tests.conftest import build_tiny_source
from tests.pipeline.test_repro import SMALL

# More batches, steps and updates than the tests need: a kill shall fall between two of them. The rates are so small
# that the model stays random: one that has learned a little writes no prompt that ends.
TESTED: dict[str, Any] = dict(SMALL)
TINY: dict[str, Any] = TESTED | {
    "runtime": {"num_threads": 1, "batch_size": 4},
    "base_model": {"source": "data/tiny"},
    "eft": TESTED["eft"] | {"num_train_epochs": 0.5, "learning_rate": 1e-6},
    "sft": TESTED["sft"] | {"num_train_epochs": 1, "learning_rate": 1e-6},
    "generate_prompts": TESTED["generate_prompts"] | {"num_prompts": 16},
    "generate_responses": TESTED["generate_responses"] | {"num_responses": 4, "max_new_tokens": 96},
    "dpo": TESTED["dpo"] | {"per_device_train_batch_size": 1, "num_train_epochs": 3, "learning_rate": 1e-6},
    "reward_model": TESTED["reward_model"] | {"per_device_train_batch_size": 2, "num_train_epochs": 1},
    "ppo": TESTED["ppo"] | {"num_updates": 12},
    "evaluate": TESTED["evaluate"] | {"max_new_tokens": 48},
}
# Python runs this at its start. It notes each batch that was computed, before it is recorded: where, which request,
# which rows. The project's code stays as it is.
TRACE = """
import json
import os
import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec


class Finder(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "align.generation.local":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        load = spec.loader.exec_module

        def load_and_trace(module):
            load(module)
            trace(module.TorchGenerator)

        spec.loader.exec_module = load_and_trace
        return spec


def trace(generator):
    plain = generator._map

    def traced_map(self, batches, function, progress, rows, n):
        def traced(batch):
            values = function(batch)
            if rows.record is not None:
                numbers = [i * n + k for i in batch for k in range(n)]
                with open(os.environ["ALIGN_TRACE"], "a") as stream:
                    stream.write(json.dumps([os.environ["DVC_STAGE"], rows.record.args[0], numbers]) + "\\n")
            return values

        plain(self, batches, traced, progress, rows, n)

    generator._map = traced_map


sys.meta_path.insert(0, Finder())
"""
# What `--finished` kills.
FINISHED_STAGES = ("generate_prompts@m1", "generate_responses@m1", "judge@m1", "dpo@m1", "ppo")
SECONDS = (5.0, 25.0)  # after which, at least and at most
Row = tuple[str, str, int]  # stage, request, number


@dataclass
class Kill:
    """One kill: which stage was running, and which rows were finished."""

    stage: str | None
    seconds: float
    finished: set[Row]
    trace_size: int

    def own(self) -> set[Row]:
        """Return the finished rows of the stage that was hit."""
        return {row for row in self.finished if row[0] == _work_name(str(self.stage))}

    def tell(self) -> Self:
        """Print it."""
        click.echo(f"  killed in {self.stage} after {self.seconds:.1f} s, {len(self.own())} rows of it on disk")
        return self


@dataclass
class Clone:
    """A clone of the project, and `dvc repro` in it."""

    path: Path
    durations: dict[str, float] = field(default_factory=dict)
    mended: int = 0  # problems that `align doctor` found

    @property
    def trace(self) -> Path:
        """The file that `TRACE` writes."""
        return self.path.parent / f"{self.path.name}.trace"

    @property
    def log(self) -> Path:
        """What `dvc repro` has said."""
        return self.path.parent / f"{self.path.name}.log"

    def start(self, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start `dvc repro` in a process group of its own."""
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "ALIGN_TRACE": str(self.trace),
            "PYTHONPATH": str(self.path.parent / "trace"),
            "DVC_NO_ANALYTICS": "1",
            "PYTHONUNBUFFERED": "1",
        }
        with self.log.open("ab") as stream:
            return subprocess.Popen(
                ["dvc", "repro", *arguments],
                cwd=self.path,
                env=environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(
        self, until: Callable[[str], float | None] = lambda stage: None, arguments: Sequence[str] = ()
    ) -> Kill | None:
        """Reproduce. When `until` gives seconds for a stage that has begun, kill all after them; None: it finished."""
        read = self.log.stat().st_size if self.log.exists() else 0
        process = self.start(arguments)
        stage, since, moment = None, time.monotonic(), None
        while process.poll() is None:
            time.sleep(0.01)
            whole, _, _ = self.log.read_bytes()[read:].rpartition(b"\n")
            read += len(whole)
            for line in whole.decode(errors="replace").splitlines():
                if line.startswith("Running stage '"):
                    now = time.monotonic()
                    if stage is not None:
                        self.durations.setdefault(stage, now - since)
                    stage, since = line.split("'")[1], now
                    if moment is None and (wait := until(stage)) is not None:
                        moment = now + wait
            if moment is not None and time.monotonic() >= moment:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                size = self.trace.stat().st_size if self.trace.exists() else 0
                return Kill(stage, time.monotonic() - since, self.finished(), size)
        if process.returncode:
            if not self.mend():
                raise click.ClickException(f"dvc repro failed, see {self.log}")
            return self.run(until, arguments)
        if stage is not None:
            self.durations.setdefault(stage, time.monotonic() - since)
        return None

    def mend(self) -> bool:
        """Do what `align doctor` says; tell whether that was anything.

        A kill may meet DVC while it writes dvc.lock or its rwlock, which it does in place; it stops at one that breaks
        off.
        """
        doctor = [sys.executable, "-m", "align.cli.main", "doctor", "--json"]
        told = subprocess.run(doctor, cwd=self.path, capture_output=True, text=True, check=False).stdout
        problems = [finding for finding in json.loads(told) if finding["status"] == "problem"]
        for finding in problems:
            click.echo(f"  {finding['check']}: {finding['what']}")
            for command in re.findall(r"`(.+?)`", " ".join(finding["steps"])):
                if command != "dvc repro":
                    subprocess.run(command, shell=True, cwd=self.path, check=True)
        self.mended += len(problems)
        return bool(problems)

    def finished(self) -> set[Row]:
        """Return the rows that are on disk, by the files themselves; a line without an end is none."""
        rows = set()
        for file in (self.path / ".align/resume").rglob("rows-*.jsonl"):
            for line in file.read_text().splitlines(keepends=True):
                if line.endswith("\n"):
                    request, values = json.loads(line)
                    rows |= {(file.parent.parent.name, request, number) for number, _ in values}
        return rows

    def computed(self, after: int = 0) -> list[Row]:
        """Return the rows that were computed since the trace had a size."""
        if not self.trace.exists():
            return []
        found = map(json.loads, self.trace.read_bytes()[after:].splitlines())
        return [(_work_name(stage), request, number) for stage, request, numbers in found for number in numbers]

    def outs(self) -> dict[str, dict[str, str]]:
        """Return the hash of each output of each stage, from dvc.lock."""
        lock = YAML(typ="safe").load((self.path / "dvc.lock").read_text(encoding="utf-8"))
        return {name: {out["path"]: out["md5"] for out in entry["outs"]} for name, entry in lock["stages"].items()}


def _work_name(stage: str) -> str:
    return stage.replace("evaluate_iteration@", "evaluate@")


def make_clone(path: Path, seed: int) -> Clone:
    """Clone the committed project with this seed and the tiny model; nothing is in its cache, so everything runs."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(path)], check=True)
    build_tiny_source(path / "data/tiny")
    write_params(path, {"seed": seed} | TINY)
    return Clone(path)


@dataclass
class Tally:
    """What is told in the end."""

    hit: list[str] = field(default_factory=list)
    equal: int = 0
    repeated: int = 0
    recovered: int = 0
    twice: int = 0
    mended: int = 0

    def add(self, done: Sequence[Kill], clone: Clone, expected: Mapping[str, Mapping[str, str]]) -> None:
        """Compare a clone that was killed and gone on with, with the hashes of the undisturbed one."""
        found = clone.outs()
        for killed in done:
            name = str(killed.stage)
            self.hit.append(name)
            self.equal += expected[name] == found[name]
            self.repeated += len(killed.finished & set(clone.computed(killed.trace_size)))
            self.recovered += len(killed.own())
        self.mended += clone.mended
        rows = clone.computed()
        self.twice += len(rows) - len(set(rows))
        left = len(list((clone.path / ".align/resume").rglob("rows-*.jsonl")))
        click.echo(f"  {len(done)} kills; unfinished work left behind: {left}")

    def as_dict(self) -> dict[str, Any]:
        """Return it as the last line."""
        return {
            "stages": {name: self.hit.count(name) for name in sorted(set(self.hit))},
            "rows_in_flight": self.twice - self.repeated,
            "rows_recovered": self.recovered,
            "mended_by_doctor": self.mended,
            "kills": len(self.hit),
            "equal": self.equal,
            "rows_repeated": self.repeated,
        }


def kill_whole_runs(workspace: Path, kills: int, seeds: int, rng: random.Random) -> Tally:
    """Kill runs of the tiny model, each against an undisturbed one of the same seed."""
    tally, number = Tally(), 0
    while len(tally.hit) < kills:
        seed, number = 17 + number, number + 1
        plain, clone = (make_clone(workspace / f"{seed}-{kind}", seed) for kind in ("plain", "killed"))
        plain.run()
        stages = list(plain.durations)
        click.echo(f"seed {seed}: undisturbed run, {len(stages)} stages, {sum(plain.durations.values()):.0f} s")
        share = min(kills - len(tally.hit), -(-kills // seeds))
        # Long stages are hit more often, as they would be.
        targets = rng.choices(stages, weights=list(plain.durations.values()), k=share)
        done: list[Kill] = []
        for target in sorted(targets, key=stages.index):
            # If a kill that was late has let the target finish, the stage that runs next is hit.
            late = stages[stages.index(target) :]
            waits = {name: rng.uniform(0, plain.durations[name]) for name in late}
            killed = clone.run(waits.get)
            if killed is None:
                break
            done.append(killed.tell())
        clone.run()
        same = (plain.path / "dvc.lock").read_bytes() == (clone.path / "dvc.lock").read_bytes()
        click.echo(f"  dvc.lock: {'equal to the byte' if same else 'DIFFERS'}")
        tally.add(done, clone, plain.outs())
    return tally


def kill_stages_again(workspace: Path, finished: Path, rng: random.Random) -> Tally:
    """Run stages of a finished clone once more in a copy, kill each once, and go on."""
    shutil.copytree(finished, workspace / "killed", symlinks=True, ignore=shutil.ignore_patterns(".venv"))
    clone, tally, done = Clone(workspace / "killed"), Tally(), []
    expected = clone.outs()
    for stage in FINISHED_STAGES:
        force, most = ("--force", "--single-item", stage), SECONDS[1]
        while (killed := clone.run({stage: rng.uniform(SECONDS[0], most)}.get, force)) is None:
            most = (SECONDS[0] + most) / 2  # it had finished
        done.append(killed.tell())
        clone.run(arguments=force)
    tally.add(done, clone, expected)
    return tally


@click.command(help=__doc__)
@click.argument("workspace", type=click.Path(path_type=Path, file_okay=False))
@click.option("--kills", default=30, show_default=True, help="How many, over all seeds.")
@click.option("--seeds", default=3, show_default=True, help="Pairs of runs, at least.")
@click.option("--finished", metavar="CLONE", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--draw", default=0, show_default=True, help="The seed of stages and moments.")
def main(workspace: Path, kills: int, seeds: int, finished: Path | None, draw: int) -> None:
    """Run it."""
    (workspace / "trace").mkdir(parents=True)
    (workspace / "trace/sitecustomize.py").write_text(TRACE, encoding="utf-8")
    rng = random.Random(draw)
    if finished is None:
        tally = kill_whole_runs(workspace, kills, seeds, rng)
    else:
        tally = kill_stages_again(workspace, finished, rng)
    click.echo(json.dumps(tally.as_dict()))


if __name__ == "__main__":
    main()
