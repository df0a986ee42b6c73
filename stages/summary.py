"""Compare all models: data/eval, data/diff, stage metrics and histories -> data/summary/.

Writes metrics.json (headline numbers), models.csv, loop.csv and scores.csv (for `dvc plots`) and report.md.
Run with `python -m stages.summary`.
"""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from align.core.errors import InputError
from align.core.files import REBUILD, read_csv, write_csv, write_json, write_text
from align.core.params import Params
from align.core.rows import AnchorScore, Answer, TrainingSample, read_rows
from align.core.templates import render
from align.judge.anchors import drift
from align.report import schemas
from align.report.iterations import loop_row, score_histogram, score_rows
from align.report.statistics import bootstrap_interval, mean, win_rate
from align.run.release import drop_recorded

R = TypeVar("R", Answer, AnchorScore)
DATA = Path("data")
SAMPLE_PROMPTS = 5
Kinds = dict[str, type[schemas.Measures]]
COUNTS: Kinds = {"prompts": schemas.PromptCounts, "scores": schemas.ScoreCounts, "preferences": schemas.PairCounts}
CALIBRATION = ("predicted", "observed", "pairs")
HISTORY = ("update", "mean_reward", "mean_score", "kl", "eos_rate", "response_tokens", "clip_fraction")


def read_same(
    folder: Path, models: Sequence[str], ending: str, row_type: type[R], key: Sequence[str]
) -> dict[str, list[R]]:
    """Read a file of each model; all must have the same keys in the same order, to be compared row by row."""
    rows = {name: read_rows(folder / f"{name}{ending}", row_type, unique=key) for name in models}
    keys = {name: [tuple(getattr(row, field) for field in key) for row in own] for name, own in rows.items()}
    for name in models:
        if keys[name] != keys["m0"]:
            raise InputError(f"{folder / name}{ending}: its rows differ from m0's, by {', '.join(key)}; {REBUILD}")
    return rows


def trend(history: Sequence[Mapping[str, float]], key: str) -> tuple[float | None, float | None]:
    """Return the means of a column over the first and the last third of the updates."""
    third = max(1, len(history) // 3)
    return mean([row[key] for row in history[:third]]), mean([row[key] for row in history[-third:]])


def compare(answers: Mapping[str, Sequence[Answer]], model: str, baseline: str, key: str) -> dict[str, Any]:
    """Return the win rate of `model` against `baseline` by `key`, with a 95% bootstrap interval over prompts.

    `key` is `judge_score` or `reward`; prompts where either model has none (a failed judgement) are left out.
    """
    both = zip(*([getattr(row, key) for row in answers[name]] for name in (model, baseline)), strict=True)
    pairs = [(ours, theirs) for ours, theirs in both if ours is not None and theirs is not None]
    wins = win_rate([ours for ours, _ in pairs], [theirs for _, theirs in pairs])
    low, high = bootstrap_interval([[win] for win in wins]) or (None, None)
    return {"": mean(wins), "_low": low, "_high": high}


def model_row(
    name: str,
    metrics: Mapping[str, Any],
    answers: Mapping[str, Sequence[Answer]],
    anchors: Mapping[str, Sequence[AnchorScore]],
) -> dict[str, Any]:
    """Return a model's row of models.csv; win rates and drift as a judge are against m0."""
    judge, moved = metrics["as_judge"], drift(anchors["m0"], anchors[name])
    by_judge, by_reward = (compare(answers, name, "m0", key) for key in ("judge_score", "reward"))
    own = ("judge_score", "reward", "reward_of_ended", "response_tokens", "ended_share", "distinct_2", "kl_to_base")
    measures = ("pairwise_accuracy", "pairwise_accuracy_low", "pairwise_accuracy_high", "exact_match", "five_best")
    return {
        "model": name,
        **{key: metrics[key] for key in (*own, "judge_failures")},
        **{f"win_rate_vs_m0{suffix}": value for suffix, value in by_judge.items()},
        **{f"reward_win_rate_vs_m0{suffix}": value for suffix, value in by_reward.items()},
        **{f"as_judge_{key}": judge[key] for key in (*measures, "spearman", "kendall", "failures")},
        "as_judge_relevance": metrics["relevance"]["accuracy"],
        "as_judge_shift": moved["shift"],
        "as_judge_same_order": moved["spearman"],
    }


@click.command(help=__doc__)
def main() -> None:
    params = Params.read()
    iterations = list(params.iterations)
    # Take the models from the params, since data/ may have files of a removed iteration.
    models = ["base", "m0", *iterations, "ppo"]
    metrics = {name: schemas.read_measures(DATA / "eval" / f"{name}.json", schemas.ModelMeasures) for name in models}
    answers = read_same(DATA / "eval", models, ".jsonl", Answer, ["id", "turn"])
    anchors = read_same(DATA / "eval", models, ".anchors.jsonl", AnchorScore, ["question_id", "number"])
    rows = [model_row(name, metrics[name], answers, anchors) for name in models]
    loop = []
    for name, parent in params.iterations.items():
        counts = (schemas.read_measures(DATA / f"metrics/{name}/{part}.json", kind) for part, kind in COUNTS.items())
        loop.append(loop_row(name, parent, *counts))
    changes = {name: schemas.read_measures(DATA / "diff" / f"{name}.json", schemas.Changes) for name in iterations}
    reward = schemas.read_measures(DATA / "metrics" / "reward.json", schemas.RewardMeasures)
    calibration = read_csv(DATA / "reward" / "calibration.csv", CALIBRATION)
    ppo = read_csv(DATA / "ppo" / "history.csv", HISTORY)
    ppo_samples: dict[str, list[TrainingSample]] = {}
    for sample in read_rows(DATA / "ppo" / "samples.jsonl", TrainingSample):
        ppo_samples.setdefault(sample.prompt, []).append(sample)
    ppo_trend = {key: trend(ppo, key) for key in ("mean_reward", "mean_score", "eos_rate")}
    by_name = {row["model"]: row for row in rows}
    last = iterations[-1]
    headline = {
        **{f"loop_{key}": by_name[last][key] for key in ("win_rate_vs_m0", "reward_win_rate_vs_m0", "judge_score")},
        "ppo_win_rate_vs_m0": by_name["ppo"]["win_rate_vs_m0"],
        "ppo_reward": by_name["ppo"]["reward"],
        "m0_reward": by_name["m0"]["reward"],
        "ppo_kl_to_base": by_name["ppo"]["kl_to_base"],
        "ppo_training_reward_first_third": ppo_trend["mean_reward"][0],
        "ppo_training_reward_last_third": ppo_trend["mean_reward"][1],
        **{f"reward_model_accuracy{end}": reward[f"accuracy{end}"] for end in ("", "_low", "_high")},
        "reward_model_test_pairs": reward["pairs"],
        **{f"{name}_judge_accuracy": by_name[name]["as_judge_pairwise_accuracy"] for name in ("base", "m0")},
        "m0_judge_relevance": by_name["m0"]["as_judge_relevance"],
    }
    first_turns = [row for row in answers["m0"] if row.turn == 1]
    picked = random.Random(params.seed).sample(first_turns, min(SAMPLE_PROMPTS, len(first_turns)))
    by_id = {name: {(row.id, row.turn): row for row in answers[name]} for name in models}
    samples = [(row, [(name, by_id[name][row.id, row.turn]) for name in models]) for row in picked]
    out = DATA / "summary"
    write_json(out / "metrics.json", headline)
    write_csv(out / "models.csv", rows)
    write_csv(out / "loop.csv", loop)
    write_csv(out / "scores.csv", score_rows(answers))
    report = render(
        "report.md.jinja",
        rows=rows,
        loop=loop,
        changes=changes,
        parents=params.iterations,
        histogram=score_histogram(answers),
        reward=reward,
        calibration=calibration,
        ppo=ppo,
        ppo_trend=ppo_trend,
        ppo_samples=ppo_samples,
        samples=samples,
    )
    write_text(out / "report.md", report + "\n")
    drop_recorded()  # the last long stage has been recorded
    click.echo(f"summary: {', '.join(models)} -> {out / 'report.md'}")


if __name__ == "__main__":
    main()
