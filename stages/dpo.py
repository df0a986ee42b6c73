"""Train a model on the loop's pairs: models/<parent> + data/<model>/preferences.jsonl -> models/<model>.

Direct preference optimization by default (arXiv 2305.18290). A killed run resumes from its last checkpoint.
Run with `python -m stages.dpo m1 m0` (the new model, its parent).
"""

from pathlib import Path

import click

from align.dpo.settings import DPOSettings
from align.dpo.training import train_dpo
from align.run.stage import Stage


@click.command(help=__doc__)
@click.argument("model_name", metavar="MODEL")
@click.argument("parent")
def main(model_name: str, parent: str) -> None:
    stage = Stage(f"dpo@{model_name}")
    settings = stage.section("dpo", DPOSettings)
    stage.start()
    preferences, models = Path("data") / model_name / "preferences.jsonl", Path("models")
    done = train_dpo(stage, "dpo", settings, models / parent, preferences, models / model_name)
    click.echo(f"{stage.name}: {done}")


if __name__ == "__main__":
    main()
