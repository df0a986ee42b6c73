"""Reward model and PPO on real human preferences, over several seeds, after `dvc repro`.

TRANSCRIPTS are rows of hh-rlhf as JSONL, gzipped or not. The stages themselves run in folder WORKSPACE, with the
params of this project but for `CHANGES`; what is there already is not made again. The last part is
`benchmarks.ppo_gain`: rewards on held-out prompts, before PPO and after it with each seed.
"""

import gzip
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
LINKS = ("models/base", "models/m0", "data/seed")
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


def write_params(workspace: Path, seed: int, dtype: str | None) -> None:
    """Write the project's params with `CHANGES`, a seed and, if given, another dtype."""
    yaml = YAML()
    params = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["seed"] = seed
    params["runtime"]["dtype"] = dtype or params["runtime"]["dtype"]
    for section, values in CHANGES.items():
        params[section] |= values
    with (workspace / "params.yaml").open("w", encoding="utf-8") as stream:
        yaml.dump(params, stream)


def run(workspace: Path, module: str, *arguments: str) -> None:
    """Run a module of this project in the workspace."""
    click.echo(f"> python -m {' '.join((module, *arguments))}")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", module, *arguments], cwd=workspace, env=environment, check=True)


@click.command(help=__doc__)
@click.argument("transcripts", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("workspace", type=click.Path(path_type=Path, file_okay=False))
@click.option("--seeds", default=3, show_default=True, help="Runs of PPO; the reward model is trained once.")
@click.option("--prompts", default=128, show_default=True, help="Held-out prompts, at most.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), help="[default: runtime.dtype]")
def main(transcripts: Path, workspace: Path, seeds: int, prompts: int, dtype: str | None) -> None:
    """Make what is missing, then measure."""
    for name in LINKS:
        link = workspace / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to((ROOT / name).resolve(), target_is_directory=True)
    first = int(YAML().load((ROOT / "params.yaml").read_text(encoding="utf-8"))["seed"])
    write_params(workspace, first, dtype)
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
            write_params(workspace, first + i, dtype)
            run(workspace, "stages.ppo", "--out", f"models/{name}", "--report", f"data/{name}")
    write_params(workspace, first, dtype)
    models = [f"models/{name}" for name in names]
    run(workspace, "benchmarks.ppo_gain", *models, "--prompts", str(prompts))


if __name__ == "__main__":
    main()
