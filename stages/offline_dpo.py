"""Train a model on human preferences: models/<offline_dpo.init> + <offline_dpo.data> -> models/dpo.

By default the pairs are those of the reward model, so DPO and PPO learn from the same ones. With `loss_type: [kto]` the
data may be single replies, each with a label. Rows of another file whose prompt is one of the evaluation are dropped.
The starting point's IFT data and known prompts are copied to data/dpo: an iteration of the loop may have `dpo` as its
parent.
A killed run resumes from its last checkpoint. Run with `python -m stages.offline_dpo`.
"""

from pathlib import Path

import click
from pydantic import Field

from align.core.files import read_bytes, replacing
from align.core.params import MODEL_NAME
from align.dpo.settings import DPOSettings
from align.dpo.training import train_dpo
from align.run.stage import Stage

PAIRS = Path("data/prepared/preferences/train.jsonl")  # of stage prepare_data, which splits them
INHERITED = ("ift.jsonl", "known_prompts.jsonl")


class OfflineDPOSettings(DPOSettings):
    """Section `offline_dpo` of params.yaml."""

    init: str = Field(pattern=f"^{MODEL_NAME.pattern}$")
    data: str


@click.command(help=__doc__)
def main() -> None:
    stage = Stage("offline_dpo")
    settings = stage.section("offline_dpo", OfflineDPOSettings)
    stage.start()
    init, data = Path("models") / settings.init, Path(settings.data)
    done = train_dpo(stage, "offline_dpo", settings, init, data, Path("models/dpo"), foreign=data != PAIRS)
    for name in INHERITED:
        with replacing(Path("data/dpo") / name) as temporary:
            temporary.write_bytes(read_bytes(Path("data") / settings.init / name))
    click.echo(f"{stage.name}: {done}")


if __name__ == "__main__":
    main()
