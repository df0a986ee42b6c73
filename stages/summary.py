"""Put every model side by side: data/eval, stage metrics and histories -> data/summary/.

Writes metrics.json (headline numbers), models.csv and loop.csv (for `dvc plots`) and report.md.
Run with `python -m stages.summary`.
"""

import csv
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from stages.lib.errors import InputError
from stages.lib.files import read_json, write_csv, write_json, write_text
from stages.lib.metrics import bootstrap_interval, mean, win_rate
from stages.lib.params import Params
from stages.lib.records import Answer, TrainingSample, read_rows
from stages.lib.templates import render

SAMPLE_PROMPTS = 5


def read_csv(path: Path) -> list[dict[str, float]]:
    """Read a stage's table of numbers."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(stream)]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot read ({error}); run `dvc repro`") from None


def trend(history: Sequence[Mapping[str, float]], key: str) -> tuple[float | None, float | None]:
    """Return the means of a quantity over the first and the last third of the updates."""
    third = max(1, len(history) // 3)
    return mean([row[key] for row in history[:third]]), mean([row[key] for row in history[-third:]])


def compare(answers: Mapping[str, Sequence[Answer]], model: str, baseline: str) -> dict[str, float | int | None]:
    """Return the win rate of `model` against `baseline` by judge score, with a 95% bootstrap interval over prompts.

    Prompts where either judgement failed take no part and are counted.
    """
    pairs = [
        (ours.judge_score, theirs.judge_score)
        for ours, theirs in zip(answers[model], answers[baseline], strict=True)
        if ours.judge_score is not None and theirs.judge_score is not None
    ]
    wins = win_rate([ours for ours, _ in pairs], [theirs for _, theirs in pairs])
    low, high = bootstrap_interval([[win] for win in wins]) or (None, None)
    return {
        "win_rate": mean(wins),
        "low": low,
        "high": high,
        "prompts": len(wins),
        "failed": len(answers[model]) - len(wins),
    }


def model_row(name: str, metrics: Mapping[str, Any], versus: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's row of models.csv."""
    judge = metrics["as_judge"]
    return {
        "model": name,
        "judge_score": metrics["judge_score"],
        "reward": metrics["reward"],
        "reward_of_ended": metrics["reward_of_ended"],
        "win_rate_vs_m0": versus["win_rate"],
        "win_rate_low": versus["low"],
        "win_rate_high": versus["high"],
        **{
            key: metrics[key]
            for key in ("response_tokens", "ended_share", "distinct_2", "kl_to_base", "judge_failures")
        },
        **{
            f"as_judge_{key}": judge[key]
            for key in (
                "pairwise_accuracy",
                "pairwise_accuracy_low",
                "pairwise_accuracy_high",
                "exact_match",
                "spearman",
                "kendall",
                "failures",
            )
        },
    }


@click.command(help=__doc__)
@click.option("--data-dir", type=click.Path(path_type=Path), default="data", show_default=True)
def main(data_dir: Path) -> None:
    params = Params.read()
    iterations = list(params.iterations)
    # The list of models comes from the params, never from what lies in data/: files of a removed iteration may remain.
    models = ["base", "m0", *iterations, "ppo"]
    metrics = {name: read_json(data_dir / "eval" / f"{name}.json") for name in models}
    answers = {name: read_rows(data_dir / "eval" / f"{name}.jsonl", Answer, unique=["id", "turn"]) for name in models}
    rows = [model_row(name, metrics[name], compare(answers, name, "m0")) for name in models]
    loop = []
    for name in iterations:
        prompts, scores, pairs = (
            read_json(data_dir / "metrics" / name / f"{part}.json") for part in ("prompts", "scores", "preferences")
        )
        loop.append(
            {
                "model": name,
                "prompts": prompts["accepted"],
                "prompts_dropped": sum(prompts["dropped"].values()),
                "responses": scores["rows"],
                "mean_score": scores["mean_score"],
                "judge_failures": sum(scores["failures"].values()),
                "pairs": pairs["pairs"],
                "mean_margin": pairs["mean_margin"],
                "words_chosen": pairs["mean_words_chosen"],
                "words_rejected": pairs["mean_words_rejected"],
                "accepted": pairs["accepted"],
            }
        )
    reward = read_json(data_dir / "metrics" / "reward.json")
    calibration = read_csv(data_dir / "reward" / "calibration.csv")
    ppo = read_csv(data_dir / "ppo" / "history.csv")
    ppo_samples: dict[str, list[TrainingSample]] = {}
    for sample in read_rows(data_dir / "ppo" / "samples.jsonl", TrainingSample):
        ppo_samples.setdefault(sample.prompt, []).append(sample)
    ppo_trend = {key: trend(ppo, key) for key in ("mean_reward", "mean_score", "eos_rate")}
    by_name = {row["model"]: row for row in rows}
    last = iterations[-1]
    headline = {
        "loop_win_rate_vs_m0": by_name[last]["win_rate_vs_m0"],
        "loop_judge_score": by_name[last]["judge_score"],
        "ppo_win_rate_vs_m0": by_name["ppo"]["win_rate_vs_m0"],
        "ppo_reward": by_name["ppo"]["reward"],
        "m0_reward": by_name["m0"]["reward"],
        "ppo_kl_to_base": by_name["ppo"]["kl_to_base"],
        "ppo_training_reward_first_third": ppo_trend["mean_reward"][0],
        "ppo_training_reward_last_third": ppo_trend["mean_reward"][1],
        "reward_model_accuracy": reward["accuracy"],
        "reward_model_accuracy_low": reward["accuracy_low"],
        "reward_model_accuracy_high": reward["accuracy_high"],
        "reward_model_test_pairs": reward["pairs"],
        "base_judge_accuracy": by_name["base"]["as_judge_pairwise_accuracy"],
        "m0_judge_accuracy": by_name["m0"]["as_judge_pairwise_accuracy"],
    }
    first_turns = [row for row in answers["m0"] if row.turn == 1]
    picked = random.Random(params.seed).sample(first_turns, min(SAMPLE_PROMPTS, len(first_turns)))
    by_id = {name: {(row.id, row.turn): row for row in answers[name]} for name in models}
    samples = [(row, [(name, by_id[name][row.id, row.turn]) for name in models]) for row in picked]
    out = data_dir / "summary"
    write_json(out / "metrics.json", headline)
    write_csv(out / "models.csv", rows)
    write_csv(out / "loop.csv", loop)
    report = render(
        "report.md.jinja",
        rows=rows,
        loop=loop,
        reward=reward,
        calibration=calibration,
        ppo=ppo,
        ppo_trend=ppo_trend,
        ppo_samples=ppo_samples,
        samples=samples,
    )
    write_text(out / "report.md", report + "\n")
    click.echo(f"summary: {', '.join(models)} -> {out / 'report.md'}")


if __name__ == "__main__":
    main()
