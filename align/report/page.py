"""report.html: the run as one page with charts, without a network, equal in bytes for equal inputs.

Its Content-Security-Policy allows the page's own style and script, by hash, and no requests.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from align.core.rows import TrainingSample
from align.core.templates import render, source_hash
from align.report import charts
from align.report.charts import Interval, Point
from align.report.comparisons import BASELINES, Evaluated, passes
from align.report.iterations import bin_label
from align.report.statistics import SCORE_EDGES, mean

HERE = Path(__file__).parent
MEASURES = {"judge": "Judge's score", "reward": "Reward, both end", "checks": "Checks passed"}
# Columns of histories -> titles of their charts; each chart shows the columns that are there.
TRAINER_CURVES: dict[tuple[str, ...], str] = {
    ("loss", "eval_loss"): "loss",
    (
        "rewards/accuracies",
        "accuracy",
        "eval_rewards/accuracies",
        "eval_accuracy",
        "eval_pairwise_accuracy",
    ): "accuracy",
}
PPO_CURVES: dict[tuple[str, ...], str] = {
    ("mean_reward", "mean_score"): "reward",
    ("kl",): "KL to the reference, nats per response",
    ("eos_rate",): "share of responses that end",
    ("response_tokens",): "tokens per response",
    ("entropy",): "entropy, nats per token",
    ("explained_variance",): "the critic's explained variance",
}
MAX_ANSWERS = 100  # prompts with all models' answers; more would make the page too large to open at once


@dataclass(frozen=True)
class Figure:
    """A chart with its title; `names` are those of its series."""

    title: str
    chart: Markup
    names: Sequence[str] = ()

    @property
    def legend(self) -> Markup:
        """The names beside their colours."""
        return charts.legend(self.names)


def forests(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Figure]]:
    """Return, for each baseline, a forest plot of each measure from the rows of models.csv."""
    result = {}
    for baseline in BASELINES:
        figures = []
        for measure, title in MEASURES.items():
            key = f"{measure}_difference_vs_{baseline}"
            intervals = [
                Interval(row["model"], row[key], row[f"{key}_low"], row[f"{key}_high"], row[f"{key}_verdict"])
                for row in rows
                if row["model"] != baseline
            ]
            if any(interval.mean is not None for interval in intervals):
                title = f"{title}: difference to {baseline}"
                figures.append(Figure(title, charts.interval_chart(title, intervals)))
        result[baseline] = figures
    return result


def curves(
    histories: Mapping[str, Sequence[Mapping[str, float]]], columns: Mapping[tuple[str, ...], str], x: str
) -> list[Figure]:
    """Return a chart for each name of a history and each group of its columns."""
    figures = []
    for name, rows in histories.items():
        for keys, title in columns.items():
            series: dict[str, list[Point]] = {
                key: [(row[x], row[key]) for row in rows if key in row]
                for key in keys
                if any(key in row for row in rows)
            }
            if series:
                title = f"{name}: {title}"
                figures.append(Figure(title, charts.line_chart(title, series, x), list(series)))
    return figures


def iteration_charts(loop: Sequence[Mapping[str, Any]], histograms: Mapping[str, Sequence[int]]) -> list[Figure]:
    """Return the judge's scores of each iteration's responses side by side, and pairs, margins and novelty."""
    labels = [bin_label(low).partition("-")[0] for low in SCORE_EDGES[:-1]]
    shares = {name: [count / (sum(counts) or 1) for count in counts] for name, counts in histograms.items()}
    title = "The judge's scores of each iteration's responses (bins of half a point, share)"
    figures = [Figure(title, charts.bar_chart(title, labels, shares), list(shares))]
    for key, title in (
        ("pair_yield", "Pairs per prompt"),
        ("mean_margin", "Mean margin of the pairs"),
        ("nearest_known_rouge_l", "ROUGE-L of a new prompt to the nearest known one"),
    ):
        values = [row[key] for row in loop if row[key] is not None]
        if len(values) == len(loop):
            figures.append(Figure(title, charts.bar_chart(title, [str(row["model"]) for row in loop], {key: values})))
    return figures


def categories(answers: Mapping[str, Evaluated]) -> list[dict[str, Any]]:
    """Return, for each category of held-out prompts, the number of answers and each model's mean judge score."""
    names = sorted({row.category for row in answers["m0"].answers})
    return [
        {"category": name, "answers": sum(row.category == name for row in answers["m0"].answers)}
        | {
            model: mean([r.judge_score for r in own.answers if r.category == name and r.judge_score is not None])
            for model, own in answers.items()
        }
        for name in names
    ]


def warnings(
    rows: Sequence[Mapping[str, Any]],
    loop: Sequence[Mapping[str, Any]],
    gates: Mapping[str, float],
    ppo: Mapping[str, Any],
) -> list[str]:
    """Return what a reader should know before believing the figures."""
    found = []
    for row in loop:
        name = row["model"]
        limits = (
            ("judge_pairwise_accuracy", "min_pairwise_accuracy", 1),
            ("score_std", "min_score_std", 1),
            ("pair_yield", "min_pair_yield", 1),
            ("mode_share", "max_mode_share", -1),
        )
        for key, gate, side in limits:
            if row[key] is not None and side * (row[key] - gates[gate]) < 0.1 * gates[gate]:
                found.append(f"{name}: {key} {row[key]:.2f} is near gates.{gate} ({gates[gate]}).")
        if (correlation := row["score_length_correlation"]) is not None and abs(correlation) > 0.5:
            found.append(f"{name}: the judge's score goes with length (Spearman {correlation:+.2f}).")
        if row["mean_score"] is not None and abs(row["mean_score"] - 2.5) < 0.15 and row["score_std"] < 0.3:
            found.append(
                f"{name}: the judge gives nearly everything {row['mean_score']:.2f}, as one that guesses would."
            )
    for row in rows:
        if row["ended_share"] is not None and row["ended_share"] < 0.5:
            found.append(
                f"{row['model']}: {1 - row['ended_share']:.0%} of its answers were cut off at the token limit."
            )
        if row["loop_share"] is not None and row["loop_share"] > 0.25:
            found.append(f"{row['model']}: {row['loop_share']:.0%} of its answers repeat themselves.")
        if row["model"] != "base" and row["kl_to_m0"] is not None and row["kl_to_m0"] > 10:
            found.append(f"{row['model']}: {row['kl_to_m0']:.1f} nats per response from m0: far from where it started.")
    explained = ppo["critic_explained_variance"]
    if explained is not None and explained < 0.05:
        found.append(f"ppo: the critic explains {explained:.2f} of the variance of the returns.")
    return found


def check_kinds(measured: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the kinds of checks and their numbers, of those kinds that all models were measured on."""
    by_kind = [measures.get("checks", {}).get("by_kind", {}) for measures in measured.values()]
    return {kind: counts for kind, counts in by_kind[0].items() if all(kind in other for other in by_kind)}


def settings_text(settings: Mapping[str, Any]) -> str:
    """Return the sections of params.yaml as lines of text, a key each."""
    lines = []
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            lines += [f"{name}:"] + [f"  {key}: {json.dumps(item, default=str)}" for key, item in value.items()]
        else:
            lines.append(f"{name}: {json.dumps(value, default=str)}")
    return "\n".join(lines)


def report_page(
    rows: Sequence[Mapping[str, Any]],
    loop: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, Any],
    evaluated: Mapping[str, Evaluated],
    measured: Mapping[str, Mapping[str, Any]],
    histograms: Mapping[str, Sequence[int]],
    histories: Mapping[str, Sequence[Mapping[str, float]]],
    ppo: Sequence[Mapping[str, float]],
    ppo_samples: Mapping[str, Sequence[TrainingSample]],
    gates: Mapping[str, float],
    settings: Mapping[str, Any],
) -> str:
    """Return the page.

    Args:
        rows: of models.csv, a model each.
        loop: of loop.csv, an iteration each.
        metrics: metrics.json.
        evaluated: each model's answers.
        measured: data/eval/<model>.json of each model.
        histograms: iteration -> counts of its responses by judge score, in the bins of `SCORE_EDGES`.
        histories: name of a training -> the rows of its history.
        ppo: the rows of PPO's history.
        ppo_samples: prompt -> its answers in the course of PPO.
        gates: section `gates` of params.yaml.
        settings: name -> value of each section of params.yaml.
    """
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    first = evaluated["m0"]
    answers = [
        {
            "row": row,
            "replies": [(name, own.answers[i]) for name, own in evaluated.items()],
        }
        for i, row in enumerate(first.answers[:MAX_ANSWERS])
    ]
    changed_checks = [
        {
            "row": row,
            "replies": [(name, own.checked[i], passes(own.checked[i])) for name, own in evaluated.items()],
        }
        for i, row in enumerate(first.checked)
        if len({passes(own.checked[i]) for own in evaluated.values()}) > 1
    ]
    return render(
        "report.html.jinja",
        rows=rows,
        loop=loop,
        metrics=metrics,
        measures=[measure for measure in MEASURES if measure != "checks" or first.checked],
        forests=forests(rows),
        iteration_figures=iteration_charts(loop, histograms),
        curves=curves(histories, TRAINER_CURVES, "step"),
        ppo_curves=curves({"PPO": ppo}, PPO_CURVES, "update"),
        ppo_samples=ppo_samples,
        categories=categories(evaluated),
        kinds=check_kinds(measured),
        measured=measured,
        answers=answers,
        all_answers=len(first.answers),
        changed_checks=changed_checks[:MAX_ANSWERS],
        checks=len(first.checked),
        warnings=warnings(rows, loop, gates, metrics),
        settings=settings_text(settings),
        seed=settings["seed"],
        style=Markup(style),
        style_hash=source_hash(style),
        script=Markup(script),
        script_hash=source_hash(script),
    )
