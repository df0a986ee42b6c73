"""Write the README's results from data/summary and data/metrics: `python -m benchmarks.results` after `make repro`."""

import csv
import json
import re
from pathlib import Path

import click

from align.core.files import write_text

MARKERS = re.compile(r"(<!-- results:[^\n]*-->\n).*?(<!-- /results -->)", re.DOTALL)


def table(root: Path) -> str:
    """Return the results of the last run as markdown."""
    with (root / "data/summary/models.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    metrics = json.loads((root / "data/summary/metrics.json").read_text(encoding="utf-8"))
    lines = [
        "| model | judge score (0-5, by m0) | win rate vs m0 | reward | of those that end | win rate vs m0 by reward "
        "| tokens | ends by itself | KL to base | as a judge: pairwise accuracy | relevance |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        number = {key: f"{float(value):.2f}" if value and key != "model" else value for key, value in row.items()}
        versus, by_reward, judge = (
            f"{number[key]} [{number[f'{key}_low']}, {number[f'{key}_high']}]"
            for key in ("win_rate_vs_m0", "reward_win_rate_vs_m0", "as_judge_pairwise_accuracy")
        )
        cells = [
            row["model"],
            number["judge_score"],
            "-" if row["model"] == "m0" else versus,
            number["reward"],
            number["reward_of_ended"],
            "-" if row["model"] == "m0" else by_reward,
            f"{float(row['response_tokens']):.0f}",
            number["ended_share"],
            number["kl_to_base"],
            judge,
            number["as_judge_relevance"],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    low, high = metrics["reward_model_accuracy_low"], metrics["reward_model_accuracy_high"]
    lines += [
        "",
        f"The reward model picks the chosen reply in {metrics['reward_model_accuracy']:.0%} [{low:.0%}, {high:.0%}] of "
        f"{metrics['reward_model_test_pairs']} held-out pairs. PPO's mean reward goes from "
        f"{metrics['ppo_training_reward_first_third']:.2f} in the first third of its updates to "
        f"{metrics['ppo_training_reward_last_third']:.2f} in the last. Intervals are 95%.",
    ]
    return "\n".join(lines)


@click.command(help=__doc__)
def main() -> None:
    """Replace what stands between the README's markers."""
    readme = Path("README.md")
    text = readme.read_text(encoding="utf-8")
    write_text(readme, MARKERS.sub(lambda match: f"{match[1]}{table(Path())}\n{match[2]}", text))


if __name__ == "__main__":
    main()
