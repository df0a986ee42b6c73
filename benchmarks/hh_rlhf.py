"""Reward model and PPO on real human preferences, over several seeds, after `dvc repro`.

TRANSCRIPTS are rows of hh-rlhf as JSONL, gzipped or not. The stages themselves run in folder WORKSPACE, with the
params of this project but for `CHANGES`; what is there already is not made again. The last part is
`benchmarks.ppo_gain`: rewards on held-out prompts, before PPO and after it with each seed.
"""

import gzip
from pathlib import Path
from typing import Any

import click

from benchmarks.workspace import link, project_params, run, write_params

CHANGES: dict[str, dict[str, Any]] = {
    "prepare_data": {
        "preferences": "data/transcripts.jsonl",
        "unusable_preferences": "drop",
        "preferences_test_fraction": 0.23,
    },
    "ppo": {
        "num_updates": 6,
        "num_ppo_epochs": 2,
        "learning_rate": 3e-4,
        "value_learning_rate": 3e-4,
        "kl_coef": 0.1,
        "missing_eos_score": -2.0,
        "max_new_tokens": 48,
        "max_prompt_length": 64,
    },
}


def changes(seed: int, dtype: str | None) -> dict[str, Any]:
    """Return `CHANGES` with a seed and, if given, another dtype."""
    return {**CHANGES, "seed": seed, "runtime": {"dtype": dtype} if dtype else {}}


@click.command(help=__doc__)
@click.argument("transcripts", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("workspace", type=click.Path(path_type=Path, file_okay=False))
@click.option("--seeds", default=3, show_default=True, help="Runs of PPO; the reward model is trained once.")
@click.option("--prompts", default=128, show_default=True, help="Held-out prompts, at most.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), help="[default: runtime.dtype]")
def main(transcripts: Path, workspace: Path, seeds: int, prompts: int, dtype: str | None) -> None:
    """Make what is missing, then measure."""
    link(workspace, ("models/base", "models/m0", "data/seed"))
    first = int(project_params()["seed"])
    write_params(workspace, changes(first, dtype))
    if not (workspace / "data/prepared").exists():
        content = transcripts.read_bytes()
        content = gzip.decompress(content) if transcripts.suffix == ".gz" else content
        (workspace / "data/transcripts.jsonl").write_bytes(content)
        run(workspace, "stages.prepare_data")
    if not (workspace / "models/reward").exists():
        run(workspace, "stages.reward_model")
    names = [f"ppo-{first + i}" for i in range(seeds)]
    for i, name in enumerate(names):
        if not (workspace / "models" / name).exists():
            write_params(workspace, changes(first + i, dtype))
            run(workspace, "stages.ppo", "--out", f"models/{name}", "--report", f"data/{name}")
    write_params(workspace, changes(first, dtype))
    models = [f"models/{name}" for name in names]
    run(workspace, "benchmarks.ppo_gain", *models, "--prompts", str(prompts))


if __name__ == "__main__":
    main()
