"""What a task with checkable answers taught the policy: held-out checks of m0 and ppo, and the rewards in training.

Run `python -m benchmarks.tasks.result` after `dvc repro evaluate@m0 evaluate@ppo` with such a recipe. It prints a
Markdown table and the curve as a Mermaid chart, and one JSON line at the end.
"""

import json
from pathlib import Path

import click

from align.core.files import read_csv
from align.report.comparisons import compare, own_columns, read_evaluated
from align.report.statistics import mean

POINTS = 20  # of the curve: means over as many equal parts of the updates


@click.command(help=__doc__)
def main() -> None:
    """Print the result of the run in the working directory."""
    models = read_evaluated(Path("data/eval"), ["m0", "ppo"])
    passed = {name: own_columns(model) for name, model in models.items()}
    found = compare(models["ppo"], models["m0"], "checks")
    click.echo("| model | checks passed | loosely |\n|---|---|---|")
    for name, columns in passed.items():
        click.echo(f"| {name} | {columns['checks_passed']:.3f} | {columns['checks_passed_loose']:.3f} |")
    with Path("data/ppo/history.csv").open(encoding="utf-8") as stream:
        rewards = [name for name in stream.readline().strip().split(",") if name.startswith("reward_")]
    history = read_csv(Path("data/ppo/history.csv"), ["update", "kl", *rewards])
    size = max(1, len(history) // POINTS)
    parts = [history[i : i + size] for i in range(0, len(history), size)]
    updates = ", ".join(f"{part[-1]['update']:.0f}" for part in parts)
    click.echo(f'\n```mermaid\nxychart-beta\n  x-axis "update" [{updates}]\n  y-axis "mean reward" 0 --> 1')
    for name in rewards:
        click.echo("  line [" + ", ".join(f"{mean([row[name] for row in part]):.3f}" for part in parts) + "]")
    click.echo("```")
    result = {
        "m0": passed["m0"]["checks_passed"],
        "ppo": passed["ppo"]["checks_passed"],
        "prompts": found.pairs,
        "difference": found.mean,
        "difference_low": found.low,
        "difference_high": found.high,
        "mcnemar_p": found.p,
        "updates": len(history),
        "kl": history[-1]["kl"],
    }
    click.echo(json.dumps(result))


if __name__ == "__main__":
    main()
