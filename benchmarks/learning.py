"""What the default recipe gains: the loop and RLHF with several seeds, by every measure of the report.

Each seed runs in a clone of the committed project, WORKSPACE/seed-N. A clone that has finished is not run again, one
that was killed resumes. The intervals draw seeds and conversations (or checked prompts), both with replacement. The
last line is one JSON object: paired differences against m0, which `benchmarks.results` writes into the README. Run it
with `python -m benchmarks.learning WORKSPACE | tee /dev/stderr | tail -n 1 > benchmarks/learning.json`.
"""

import json
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from align.core.errors import InputError
from align.core.files import read_json
from align.report.comparisons import MEASURES, Evaluated, read_evaluated
from align.report.statistics import mean
from benchmarks.workspace import ROOT, project_environment, project_params, write_params

RESAMPLES = 2000
# Name in the JSON object -> model (None: the last iteration) and measure.
COMPARISONS = {
    "judge_change_base": ("base", "judge"),
    "loop_gain": (None, "judge"),
    "reward_change_loop": (None, "reward"),
    "checks_change_loop": (None, "checks"),
    "judge_change_dpo": ("dpo", "judge"),
    "dpo_gain": ("dpo", "reward"),
    "checks_change_dpo": ("dpo", "checks"),
    "rlhf_gain": ("ppo", "reward"),
    "judge_change_rlhf": ("ppo", "judge"),
    "checks_change_rlhf": ("ppo", "checks"),
}


def git(*arguments: str, cwd: Path = ROOT) -> str:
    """Run git and return what it printed."""
    return subprocess.run(["git", *arguments], cwd=cwd, check=True, capture_output=True, text=True).stdout.strip()


def clone(workspace: Path, seed: int) -> Path:
    """Return the clone of a seed, which is made unless it is there.

    Raises:
        InputError: it is of another commit.
    """
    path = workspace.absolute() / f"seed-{seed}"
    head = git("rev-parse", "HEAD")
    if not path.exists():
        git("clone", "-q", str(ROOT), str(path))
        write_params(path, {"seed": seed}, path)
    if git("rev-parse", "HEAD", cwd=path) != head:
        raise InputError(f"{path}: a run of another commit; delete it, or name another workspace")
    return path


def crossed_interval(groups: Sequence[Mapping[str, Sequence[float]]], seed: int = 0) -> tuple[float, float] | None:
    """Return the 95% percentile bootstrap interval of the mean of all values, None of no values.

    `groups` has one mapping per seed, from a conversation to its values. Seeds and conversations are drawn with
    replacement, independently: a conversation is the same for all seeds.
    """
    keys = sorted({key for group in groups for key in group})
    sums = np.array([[sum(group.get(key, ())) for key in keys] for group in groups])
    counts = np.array([[len(group.get(key, ())) for key in keys] for group in groups])
    if not counts.sum():
        return None
    generator = np.random.default_rng(seed)
    means = []
    for _ in range(RESAMPLES):
        rows = generator.integers(len(groups), size=len(groups))
        columns = generator.integers(len(keys), size=len(keys))
        drawn = np.ix_(rows, columns)
        if total := counts[drawn].sum():
            means.append(sums[drawn].sum() / total)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def combined(runs: Sequence[Mapping[str, Evaluated]], name: str, measure: str) -> dict[str, float | None]:
    """Return the mean paired difference of a model against m0 over all seeds, with its interval."""
    groups = []
    for run in runs:
        values: defaultdict[str, list[float]] = defaultdict(list)
        for key, value in MEASURES[measure](run[name], run["m0"]):
            values[key].append(value)
        groups.append(values)
    low, high = crossed_interval(groups) or (None, None)
    return {"": mean([v for group in groups for values in group.values() for v in values]), "_low": low, "_high": high}


@click.command(help=__doc__)
@click.argument("workspace", type=click.Path(path_type=Path, file_okay=False))
@click.option("--seeds", default=3, show_default=True, help="How many, from that of params.yaml on.")
def main(workspace: Path, seeds: int) -> None:
    """Run what is missing, then compare."""
    params = project_params()
    last = list(params["iterations"])[-1]
    runs = []
    for seed in range(params["seed"], params["seed"] + seeds):
        path = clone(workspace, seed)
        subprocess.run(["dvc", "repro"], cwd=path, env=project_environment(), check=True)
        runs.append(read_evaluated(path / "data/eval", ["base", "m0", last, "dpo", "ppo"]))
        metrics: dict[str, Any] = read_json(path / "data/summary/metrics.json")
        shown = [f"{key} {value:.2f}" for key, value in metrics.items() if value is not None]
        click.echo(f"seed {seed}: " + ", ".join(shown))
    result: dict[str, Any] = {"seeds": seeds, "commit": git("rev-parse", "--short", "HEAD")}
    for name, (model, measure) in COMPARISONS.items():
        result |= {f"{name}{end}": value for end, value in combined(runs, model or last, measure).items()}
    click.echo(json.dumps(result))


if __name__ == "__main__":
    main()
