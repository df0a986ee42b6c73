"""The reward model against ridge regression on word counts, on the same five folds of the seed pairs by conversation.

Each fold runs stage `reward_model` with this project's params in a folder of WORKSPACE; what is there already is
not made again. The last line is one JSON object: both accuracies over all pairs, and their paired difference with its
95% bootstrap interval over conversations. Ridge has the best of its three penalties, which favours it. Run after
`dvc repro sft`, with `python -m benchmarks.reward_folds WORKSPACE`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from align.core.files import read_json
from align.core.rows import PreferencePair, ScoredPair, read_rows, write_rows
from align.core.split import conversation_key
from align.data.preferences import read_preferences
from align.report.statistics import bootstrap_interval, mean, win_rate
from benchmarks.bag_of_words import PENALTIES, fold_numbers, preference_margins
from benchmarks.workspace import link, project_params, run, write_params

FOLDS = 5
SEED_PAIRS = Path("data/seed/preferences.jsonl")


def split(pairs: Sequence[PreferencePair], fold: int) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Return the pairs to train on and those of the fold; no conversation is in both."""
    numbers = fold_numbers([conversation_key(pair.messages) for pair in pairs], FOLDS)
    train = [pair for pair, number in zip(pairs, numbers, strict=True) if number != fold]
    return train, [pair for pair, number in zip(pairs, numbers, strict=True) if number == fold]


def run_fold(folder: Path, train: Sequence[PreferencePair], test: Sequence[PreferencePair], seed: int) -> None:
    """Train and measure a reward model in `folder`, unless it is there."""
    if (folder / "data/metrics/reward.json").exists():
        return
    write_params(folder, {"seed": seed})
    link(folder, ("models/base", "models/m0"))
    write_rows(folder / "data/prepared/preferences/train.jsonl", train)
    write_rows(folder / "data/prepared/preferences/test.jsonl", test)
    run(folder, "stages.reward_model")


def compare(
    pairs: Sequence[PreferencePair], scored: Sequence[dict[str, ScoredPair]], ridge: Sequence[float]
) -> dict[str, Any]:
    """Return the accuracies and the paired difference; `scored` has a run's scores by pair for each seed."""
    wins = [
        win_rate([run[pair.id].chosen_score for pair in pairs], [run[pair.id].rejected_score for pair in pairs])
        for run in scored
    ]
    ours = np.mean(wins, axis=0).tolist()
    theirs = win_rate(ridge, [0.0] * len(pairs))
    differences: dict[str, list[float]] = {}
    for pair, a, b in zip(pairs, ours, theirs, strict=True):
        differences.setdefault(conversation_key(pair.messages), []).append(a - b)
    low, high = bootstrap_interval(list(differences.values())) or (None, None)
    return {
        "rm_accuracy": mean(ours),
        "ridge_accuracy": mean(theirs),
        "rm_minus_ridge": mean([a - b for a, b in zip(ours, theirs, strict=True)]),
        "rm_minus_ridge_low": low,
        "rm_minus_ridge_high": high,
    }


@click.command(help=__doc__)
@click.argument("workspace", type=click.Path(path_type=Path, file_okay=False))
@click.option("--seeds", default=1, show_default=True, help="Runs of each fold.")
def main(workspace: Path, seeds: int) -> None:
    """Train what is missing, then compare."""
    pairs, _ = read_preferences(SEED_PAIRS)
    first = int(project_params()["seed"])
    scored, gaps = list[dict[str, ScoredPair]](), list[float]()
    for seed in range(first, first + seeds):
        scored.append({})
        for fold in range(FOLDS):
            folder = workspace / f"seed-{seed}-fold-{fold}"
            run_fold(folder, *split(pairs, fold), seed)
            scored[-1] |= {row.id: row for row in read_rows(folder / "data/reward/test_scores.jsonl", ScoredPair)}
            gaps.append(read_json(folder / "data/metrics/reward.json")["truncation_gap"])
    folds = fold_numbers([conversation_key(pair.messages) for pair in pairs], FOLDS)
    margins = {penalty: preference_margins(pairs, folds, penalty) for penalty in PENALTIES}
    best = max(PENALTIES, key=lambda penalty: float(np.mean(margins[penalty] > 0)))
    for penalty in PENALTIES:
        click.echo(f"ridge with penalty {penalty:g}: {np.mean(margins[penalty] > 0):.3f}")
    result = compare(pairs, scored, margins[best].tolist())
    counts = {"pairs": len(pairs), "folds": FOLDS, "seeds": seeds, "ridge_penalty": best}
    click.echo(json.dumps(counts | result | {"truncation_gap": mean(gaps)}))


if __name__ == "__main__":
    main()
