"""RLHF with PPO: models/<ppo.init> + models/reward + data/prepared/prompts.jsonl -> models/ppo.

Run with `python -m stages.ppo`.
"""

from pathlib import Path

import click
from tqdm import tqdm

from stages.lib.files import replacing, write_csv
from stages.lib.models import AdapterStack, copy_tokenizer, write_model_card
from stages.lib.params import Params
from stages.lib.ppo_trainer import PPOSettings, PPOTrainer
from stages.lib.records import Prompt, read_rows
from stages.lib.runtime import RuntimeSettings, start
from stages.lib.tokenization import drop_too_long, encode_prompt


@click.command(help=__doc__)
@click.option("--base", type=click.Path(path_type=Path), default="models/base", show_default=True)
@click.option("--reward", type=click.Path(path_type=Path), default="models/reward", show_default=True)
@click.option("--prompts", type=click.Path(path_type=Path), default="data/prepared/prompts.jsonl", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default="models/ppo", show_default=True)
@click.option("--history", type=click.Path(path_type=Path), default="data/ppo/history.csv", show_default=True)
def main(base: Path, reward: Path, prompts: Path, out: Path, history: Path) -> None:
    params = Params.read()
    runtime = params.section("runtime", RuntimeSettings)
    settings = params.section("ppo", PPOSettings)
    start(runtime, params.seed)
    init = Path("models") / settings.init
    stack = AdapterStack(base, runtime)
    # The value function starts from the reward model's features.
    for name, model_dir in {"policy": init, "reference": init, "reward": reward, "value": reward}.items():
        stack.add(name, model_dir)
    encoded = [encode_prompt(stack.tokenizer, row.messages) for row in read_rows(prompts, Prompt)]
    encoded, dropped = drop_too_long(
        encoded, [len(ids) for ids in encoded], settings.max_prompt_length, "ppo.max_prompt_length"
    )

    trainer = PPOTrainer(stack, encoded, settings, params.seed, runtime.batch_size)
    rows = []
    with tqdm(total=settings.num_updates, desc="ppo", unit="update") as progress:
        for _ in range(settings.num_updates):
            row = trainer.step()
            rows.append(row)
            progress.set_postfix({key: f"{row[key]:.2f}" for key in ("mean_reward", "kl", "response_tokens")})
            progress.update()
    with replacing(out) as temporary:
        stack.save("policy", temporary)
        copy_tokenizer(base, temporary)
        parents = {"base": base, "parent": init, "reference": init, "reward": reward}
        write_model_card(temporary, "ppo", parents, {"prompts": prompts}, settings.model_dump(), params.seed)
    write_csv(history, rows)
    click.echo(
        f"ppo: {len(rows)} updates of {settings.rollout_batch_size} responses, mean reward "
        f"{rows[0]['mean_reward']:.2f} -> {rows[-1]['mean_reward']:.2f}; {dropped} prompts dropped as too long"
    )


if __name__ == "__main__":
    main()
