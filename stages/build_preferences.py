"""Best against worst: data/<model>/scores.jsonl -> data/<model>/preferences.jsonl, and the IFT data grown by good rows.

Run with `python -m stages.build_preferences m1 m0` (the new model, its parent).
"""

from pathlib import Path

import click
from pydantic import Field

from stages.lib.errors import InputError
from stages.lib.files import write_json
from stages.lib.metrics import mean
from stages.lib.params import Params, Settings
from stages.lib.preferences import build_pairs
from stages.lib.records import Instruction, ScoredResponse, read_rows, write_rows


class BuildPreferencesSettings(Settings):
    """Section `build_preferences` of params.yaml."""

    min_margin: float = Field(ge=0)
    accept_score: float = Field(ge=0, le=5)


def accepted_rows(rows: list[ScoredResponse], accept_score: float) -> list[Instruction]:
    """Return the best finished response of each prompt as an IFT row, where its score reaches `accept_score`."""
    best: dict[str, ScoredResponse] = {}
    for row in rows:
        if row.score is None or row.score < accept_score or row.finish_reason != "stop" or not row.response.strip():
            continue
        if row.id not in best or row.score > (best[row.id].score or 0.0):
            best[row.id] = row
    return [
        Instruction(id=row.id, category="generated", prompt=row.prompt, completion=row.response, source="accepted")
        for row in best.values()
    ]


@click.command(help=__doc__)
@click.argument("model")
@click.argument("parent")
def main(model: str, parent: str) -> None:
    settings = Params.read().section("build_preferences", BuildPreferencesSettings)
    out_dir = Path("data") / model
    rows = read_rows(out_dir / "scores.jsonl", ScoredResponse, unique=["id", "sample"])
    parent_ift = read_rows(Path("data") / parent / "ift.jsonl", Instruction, unique=["id"])
    pairs, dropped = build_pairs(rows, settings.min_margin)
    if not pairs:
        raise InputError(f"build_preferences@{model}: no pair of {dict(dropped)}; lower build_preferences.min_margin")
    accepted = accepted_rows(rows, settings.accept_score)
    write_rows(out_dir / "preferences.jsonl", pairs)
    write_rows(out_dir / "ift.jsonl", [*parent_ift, *accepted])
    summary = {
        "pairs": len(pairs),
        "dropped": dict(sorted(dropped.items())),
        "mean_margin": mean([pair.margin or 0.0 for pair in pairs]),
        "mean_words_chosen": mean([len(pair.chosen.split()) for pair in pairs]),
        "mean_words_rejected": mean([len(pair.rejected.split()) for pair in pairs]),
        "accepted": len(accepted),
    }
    write_json(Path("data/metrics") / model / "preferences.json", summary)
    click.echo(
        f"build_preferences@{model}: {len(pairs)} pairs, dropped {dict(dropped)}, {len(accepted)} accepted into IFT"
    )


if __name__ == "__main__":
    main()
