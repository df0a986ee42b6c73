"""DPO against PPO on human pairs: from the same m0, on the same pairs, compared with m0 by every measure of the report.

It runs the default recipe on a file of preferences in a clone of the last commit, as far as the evaluation of m0, dpo
and ppo; a run that was killed resumes. It prints a Markdown table and, as the last line, one JSON object. Run it with
`python -m benchmarks.tasks.methods WORKSPACE pairs.jsonl`, a file of either layout that docs/DATA.md names for pairs.
"""

import gzip
import json
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from align.core.files import read_json
from align.report.comparisons import MEASURES, Evaluated, compare, read_evaluated
from benchmarks.learning import git
from benchmarks.workspace import ROOT, project_environment, write_params

METHODS = ("dpo", "ppo")
PAIRS = Path("data/pairs.jsonl")


def prepare(workspace: Path, preferences: Path, seed: int, cache: Path | None) -> None:
    """Clone the project into `workspace`, unless it is there, with these preferences and seed."""
    if workspace.exists():
        return
    git("clone", "-q", str(ROOT), str(workspace.absolute()))
    content = preferences.read_bytes()
    (workspace / PAIRS).write_bytes(gzip.decompress(content) if preferences.suffix == ".gz" else content)
    data = {"preferences": PAIRS.as_posix(), "unusable_preferences": "drop"}
    write_params(workspace, {"seed": seed, "prepare_data": data}, workspace)
    if cache is not None:
        command = ["dvc", "cache", "dir", "--local", str(cache.absolute())]
        subprocess.run(command, cwd=workspace, env=project_environment(), check=True)


def row(name: str, models: Mapping[str, Evaluated], measures: Mapping[str, Any]) -> dict[str, Any]:
    """Return a method's figures: its differences to m0, and what its answers are like."""
    own = {key: measures[key] for key in ("kl_to_m0", "response_tokens", "ended_share")}
    for measure in MEASURES:
        found = compare(models[name], models["m0"], measure)
        own |= {measure: found.mean, f"{measure}_low": found.low, f"{measure}_high": found.high}
        own |= {f"{measure}_prompts": found.pairs, f"{measure}_verdict": found.verdict}
    return own


def cell(own: Mapping[str, Any], measure: str) -> str:
    """Return a difference with its interval and verdict for the table."""
    if own[f"{measure}_low"] is None:
        return "-"
    ends = f"[{own[f'{measure}_low']:+.2f}, {own[f'{measure}_high']:+.2f}]"
    return f"{own[measure]:+.2f} {ends} {own[f'{measure}_verdict']} ({own[f'{measure}_prompts']})"


@click.command(help=__doc__)
@click.argument("workspace", type=click.Path(path_type=Path, file_okay=False))
@click.argument("preferences", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--seed", default=17, show_default=True)
@click.option("--cache", type=click.Path(path_type=Path, file_okay=False), help="DVC cache of a run with the same m0.")
def main(workspace: Path, preferences: Path, seed: int, cache: Path | None) -> None:
    """Run what is missing, then compare."""
    prepare(workspace, preferences, seed, cache)
    started = time.monotonic()
    targets = [f"evaluate@{name}" for name in ("m0", *METHODS)]
    subprocess.run(["dvc", "repro", *targets], cwd=workspace, env=project_environment(), check=True)
    minutes = (time.monotonic() - started) / 60
    folder = workspace / "data/eval"
    models = read_evaluated(folder, ["m0", *METHODS])
    measured = {name: read_json(folder / f"{name}.json") for name in models}
    rows = {name: row(name, models, measured[name]) for name in METHODS}
    heads = ["model", *MEASURES, "KL to m0", "tokens", "ended"]
    click.echo(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for name in models:
        cells = [cell(rows[name], measure) if name in rows else "-" for measure in MEASURES]
        own = measured[name]
        like = [f"{own['kl_to_m0']:.1f}", f"{own['response_tokens']:.0f}", f"{own['ended_share']:.2f}"]
        click.echo(f"| {' | '.join([name, *cells, *like])} |")
    reward = read_json(workspace / "data/metrics/reward.json")
    result = {"train_pairs": reward["train_pairs"], "reward_model_accuracy": reward["accuracy"], **rows}
    click.echo(json.dumps(result | {"seed": seed, "commit": git("rev-parse", "--short", "HEAD"), "minutes": minutes}))


if __name__ == "__main__":
    main()
