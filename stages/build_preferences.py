"""Pair best and worst responses: data/<model>/scores.jsonl -> data/<model>/preferences.jsonl and ift.jsonl.

The IFT data are the parent's and the best responses. The gates are checked here, where stopping is free: the judge's
work is kept, and a changed threshold reruns only this stage. Run with `python -m stages.build_preferences m1 m0` (the
new model, its parent).
"""

from pathlib import Path
from typing import Self

import click
from pydantic import Field, model_validator

from align.core.errors import InputError
from align.core.files import write_json
from align.core.params import Params, Settings
from align.core.rows import Instruction, ScoredResponse, read_rows, write_rows
from align.loop.accepted import good_rows, grow
from align.loop.gates import GateSettings, judge_problems, yield_problems
from align.loop.pairs import build_pairs
from align.report.schemas import ScoreCounts, read_measures
from align.report.statistics import mean, spearman


class BuildPreferencesSettings(Settings):
    """Section `build_preferences` of params.yaml."""

    min_margin: float = Field(ge=0)
    length_rho: float = Field(ge=0)
    chosen_must_end: bool
    max_length_gap: float | None = Field(ge=0, le=1)
    accept_score: float = Field(ge=0, le=5)
    max_generated_share: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _one_control_of_length(self) -> Self:
        if self.length_rho and self.max_length_gap is not None:
            raise ValueError("length_rho 0 or max_length_gap null: each controls the length of what is chosen")
        return self


@click.command(help=__doc__)
@click.argument("model")
@click.argument("parent")
def main(model: str, parent: str) -> None:
    params = Params.read()
    settings = params.section("build_preferences", BuildPreferencesSettings)
    gates = params.section("gates", GateSettings)
    out_dir, metrics_dir = Path("data") / model, Path("data/metrics") / model
    rows = read_rows(out_dir / "scores.jsonl", ScoredResponse, unique=["id", "sample"])
    parent_ift = read_rows(Path("data") / parent / "ift.jsonl", Instruction, unique=["id"])
    pairs, dropped = build_pairs(
        rows, settings.min_margin, settings.length_rho, settings.chosen_must_end, settings.max_length_gap
    )
    prompts = len({row.id for row in rows})
    counts = read_measures(metrics_dir / "scores.json", ScoreCounts)
    problems = judge_problems(gates, counts) + yield_problems(gates, len(pairs), prompts, dropped)
    if problems:
        raise InputError(f"build_preferences@{model}: the loop stops before it trains on noise: " + "; ".join(problems))
    good = good_rows(rows, settings.accept_score, model, counts["judge"])
    ift, outcomes = grow(parent_ift, good, settings.max_generated_share)
    write_rows(out_dir / "preferences.jsonl", pairs)
    write_rows(out_dir / "ift.jsonl", ift)
    chosen = [len(pair.chosen.split()) for pair in pairs]
    rejected = [len(pair.rejected.split()) for pair in pairs]
    gaps = [c - r for c, r in zip(chosen, rejected, strict=True)]
    margins = [pair.margin or 0.0 for pair in pairs]
    summary = {
        "pairs": len(pairs),
        "pair_yield": len(pairs) / prompts,
        "dropped": dict(sorted(dropped.items())),
        "mean_margin": mean(margins),
        "mean_words_chosen": mean(chosen),
        "mean_words_rejected": mean(rejected),
        "chosen_longer_share": mean([float(gap > 0) for gap in gaps]),
        "margin_length_correlation": spearman(margins, gaps),
        "accepted": outcomes["accepted"],
        "not_accepted": {reason: n for reason, n in sorted(outcomes.items()) if reason != "accepted"},
        "ift": len(ift),
    }
    write_json(metrics_dir / "preferences.json", summary)
    click.echo(
        f"build_preferences@{model}: {len(pairs)} pairs, dropped {dict(dropped)}, IFT data {len(parent_ift)} -> "
        f"{len(ift)} rows (good responses: {dict(outcomes)})"
    )


if __name__ == "__main__":
    main()
