"""Compare all models: data/eval, data/diff, stage metrics and histories -> data/summary/.

Writes metrics.json (headline numbers), models.csv, loop.csv and scores.csv (for `dvc plots`), and the report, as
report.md and report.html. Run with `python -m stages.summary`.
"""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from align.core.files import read_csv, write_csv, write_json, write_text
from align.core.params import SECTIONS, Params
from align.core.rows import AnchorScore, TrainingSample, read_rows
from align.core.templates import render
from align.judge.anchors import drift
from align.loop.gates import GateSettings
from align.report import schemas
from align.report.comparisons import (
    BASELINES,
    MEASURES,
    Evaluated,
    comparison_columns,
    own_columns,
    read_evaluated,
    read_same,
)
from align.report.iterations import loop_row, score_histogram, score_rows
from align.report.page import report_page
from align.report.statistics import mean
from align.run.release import drop_recorded

DATA = Path("data")
SAMPLE_PROMPTS = 5
Kinds = dict[str, type[schemas.Measures]]
COUNTS: Kinds = {"prompts": schemas.PromptCounts, "scores": schemas.ScoreCounts, "preferences": schemas.PairCounts}
CALIBRATION = ("predicted", "observed", "pairs")
STEPS = ("step", "loss")
HISTORY = ("update", "mean_reward", "mean_score", "kl", "eos_rate", "response_tokens", "clip_fraction")


def trend(history: Sequence[Mapping[str, float]], key: str) -> tuple[float | None, float | None]:
    """Return the means of a column over the first and the last third of the updates."""
    third = max(1, len(history) // 3)
    return mean([row[key] for row in history[:third]]), mean([row[key] for row in history[-third:]])


def last_third(history: Sequence[Mapping[str, float]], key: str) -> float | None:
    """Return the mean of a column over the last third of the updates, None if the column is absent or empty."""
    return mean([row[key] for row in history[-max(1, len(history) // 3) :] if key in row])


def model_row(
    name: str,
    metrics: Mapping[str, Any],
    evaluated: Mapping[str, Evaluated],
) -> dict[str, Any]:
    """Return a model's row of models.csv."""
    own = ("judge_score", "reward", "reward_of_ended", "response_tokens", "ended_share", "distinct_2", "kl_to_base")
    row = {"model": name, **{key: metrics[key] for key in (*own, "kl_to_m0", "judge_failures")}}
    row |= own_columns(evaluated[name])
    for baseline in BASELINES:
        row |= comparison_columns(evaluated, name, baseline)
    return row


def headline(
    rows: Mapping[str, Mapping[str, Any]],
    loop: Sequence[Mapping[str, Any]],
    reward: Mapping[str, Any],
    ppo: Sequence[Mapping[str, float]],
) -> dict[str, Any]:
    """Return metrics.json from the rows of models and iterations, the reward model's measures and PPO's history.

    `base`, `loop` (the last iteration), `dpo` and `rlhf` (ppo) are compared with m0; null where a measure is undefined.
    """
    last, first = loop[-1]["model"], loop[0]  # whose judge is m0, unless it is the reward model
    judged_by_m0 = first["judge"] == "m0"
    compared = {"base": ("base", ["judge"]), "loop": (last, MEASURES)}
    compared |= {"dpo": ("dpo", MEASURES), "rlhf": ("ppo", MEASURES)}
    first_third, final_third = trend(ppo, "mean_reward")
    return {
        **{
            f"{side}_{measure}_difference{end}": rows[name][f"{measure}_difference_vs_m0{end}"]
            for side, (name, measures) in compared.items()
            for measure in measures
            for end in ("", "_low", "_high")
        },
        "dpo_kl_to_m0": rows["dpo"]["kl_to_m0"],
        "rlhf_kl_to_m0": rows["ppo"]["kl_to_m0"],
        "ppo_training_reward_first_third": first_third,
        "ppo_training_reward_last_third": final_third,
        "critic_explained_variance": last_third(ppo, "explained_variance"),
        **{f"reward_model_accuracy{end}": reward[f"accuracy{end}"] for end in ("", "_low", "_high")},
        "reward_model_test_pairs": reward["pairs"],
        "m0_judge_accuracy": first["judge_pairwise_accuracy"] if judged_by_m0 else None,
        "m0_judge_relevance": first["judge_relevance"] if judged_by_m0 else None,
    }


@click.command(help=__doc__)
def main() -> None:
    params = Params.read()
    gates = params.section("gates", GateSettings).model_dump()
    settings = {name: params.values[name] for name in SECTIONS if name != "text"}
    iterations = list(params.iterations)
    # Take the models from the params, since data/ may have files of a removed iteration.
    models = ["base", "m0", *iterations, "dpo", "ppo"]
    metrics = {name: schemas.read_measures(DATA / "eval" / f"{name}.json", schemas.ModelMeasures) for name in models}
    evaluated = read_evaluated(DATA / "eval", models)
    answers = {name: evaluated[name].answers for name in models}
    rows = [model_row(name, metrics[name], evaluated) for name in models]
    keys = ["question_id", "number"]
    anchors = read_same(
        DATA / "metrics", iterations, "/anchors.jsonl", AnchorScore, keys, first=iterations[0], allow_empty=True
    )  # none where a checker judged
    loop, histograms = [], {}
    for name in iterations:
        folder = DATA / "metrics" / name
        counts = {part: schemas.read_measures(folder / f"{part}.json", kind) for part, kind in COUNTS.items()}
        moved = drift(anchors[iterations[0]], anchors[name])
        loop.append(loop_row(name, *counts.values()) | {f"judge_{key}": value for key, value in moved.items()})
        histograms[name] = counts["scores"]["histogram"]
    changes = {name: schemas.read_measures(DATA / "diff" / f"{name}.json", schemas.Changes) for name in iterations}
    reward = schemas.read_measures(DATA / "metrics" / "reward.json", schemas.RewardMeasures)
    calibration = read_csv(DATA / "reward" / "calibration.csv", CALIBRATION)
    ppo = read_csv(DATA / "ppo" / "history.csv", HISTORY)
    trained = {"judge (EFT)": "m0/eft_history.csv", "instructions (SFT)": "m0/sft_history.csv"}
    trained |= {f"{name} (DPO)": f"metrics/{name}/dpo_history.csv" for name in [*iterations, "dpo"]}
    trained["reward model"] = "reward/history.csv"
    histories = {name: read_csv(DATA / path, STEPS) for name, path in trained.items()}
    ppo_samples: dict[str, list[TrainingSample]] = {}
    for sample in read_rows(DATA / "ppo" / "samples.jsonl", TrainingSample):
        ppo_samples.setdefault(sample.prompt, []).append(sample)
    ppo_trend = {key: trend(ppo, key) for key in ("mean_reward", "mean_score", "eos_rate")}
    by_name = {row["model"]: row for row in rows}
    measured = headline(by_name, loop, reward, ppo)
    first_turns = [row for row in answers["m0"] if row.turn == 1]
    picked = random.Random(params.seed).sample(first_turns, min(SAMPLE_PROMPTS, len(first_turns)))
    by_id = {name: {(row.id, row.turn): row for row in answers[name]} for name in models}
    samples = [(row, [(name, by_id[name][row.id, row.turn]) for name in models]) for row in picked]
    out = DATA / "summary"
    write_json(out / "metrics.json", measured)
    write_csv(out / "models.csv", rows)
    write_csv(out / "loop.csv", loop)
    write_csv(out / "scores.csv", score_rows(answers))
    report = render(
        "report.md.jinja",
        rows=rows,
        baselines=BASELINES,
        checks=len(evaluated["m0"].checked),
        loop=loop,
        changes=changes,
        parents=params.iterations,
        histogram=score_histogram(answers),
        reward=reward,
        calibration=calibration,
        ppo=ppo,
        ppo_trend=ppo_trend,
        explained_variance=measured["critic_explained_variance"],
        ppo_samples=ppo_samples,
        samples=samples,
    )
    write_text(out / "report.md", report + "\n")
    page = report_page(
        rows, loop, measured, evaluated, metrics, histograms, histories, ppo, ppo_samples, gates, settings
    )
    write_text(out / "report.html", page + "\n")
    drop_recorded()  # the last long stage has been recorded
    if (measured["critic_explained_variance"] or 0) < 0:
        click.echo(
            "summary: warning: PPO's critic predicts returns worse than their mean does (explained variance "
            f"{measured['critic_explained_variance']:.2f} over the last third of the updates); raise "
            "ppo.value_learning_rate or the number of updates"
        )
    click.echo(f"summary: {', '.join(models)} -> {out / 'report.html'}")


if __name__ == "__main__":
    main()
