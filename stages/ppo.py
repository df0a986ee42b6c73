"""RLHF with PPO: models/<ppo.init> + models/reward + data/prepared/prompts.jsonl -> models/ppo.

data/<ppo.init>/ift.jsonl shows how long that model's replies should be; a lower `ppo.max_new_tokens` gets a warning.

A killed run resumes from its last checkpoint. Run with `python -m stages.ppo`.
"""

import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
from tqdm import tqdm

from align.core.files import replacing, write_csv
from align.core.rows import Prompt, TrainingSample, read_rows, write_rows
from align.generation.local import TorchGenerator
from align.generation.sampling import SamplingParams
from align.models.base import copy_tokenizer, load_tokenizer
from align.models.card import write_model_card
from align.models.stack import AdapterStack
from align.models.tokenization import completion_lengths, drop_too_long, encode_prompt, warn_if_capped
from align.ppo.settings import PPOSettings
from align.ppo.trainer import PPOTrainer
from align.reward.scoring import reward_scores
from align.run.runtime import row_seed
from align.run.stage import BASE, Stage
from align.run.work import Pace

PROMPTS, REWARD = Path("data/prepared/prompts.jsonl"), Path("models/reward")
NUM_SAMPLES = 4  # prompts whose answers show what training does


def sample_answers(
    stack: AdapterStack, prompts: Sequence[Prompt], settings: PPOSettings, update: int
) -> list[TrainingSample]:
    """Answer `prompts` greedily with the current policy."""
    encoded = [encode_prompt(stack.tokenizer, row.messages) for row in prompts]
    with stack.using("policy") as model:
        generator = TorchGenerator(model, stack.tokenizer, NUM_SAMPLES)
        sampled = generator.generate(
            encoded, SamplingParams(settings.max_new_tokens, temperature=0.0), [0] * len(prompts)
        )
    tokens = [ids + completion.token_ids for ids, [completion] in zip(encoded, sampled, strict=True)]
    scores = reward_scores(stack, "reward", tokens, batch_size=NUM_SAMPLES)
    return [
        TrainingSample(
            id=row.id,
            update=update,
            prompt=row.messages[-1].content,
            response=completion.text.strip(),
            finish_reason=completion.finish_reason,
            score=score,
        )
        for row, [completion], score in zip(prompts, sampled, scores, strict=True)
    ]


def warn_of_critic(history: Sequence[Mapping[str, float]]) -> None:
    """Print a warning if the critic predicts the last third's returns worse than their mean would."""
    last = history[-max(1, len(history) // 3) :]
    explained = [row["explained_variance"] for row in last if "explained_variance" in row]
    if explained and (mean := statistics.fmean(explained)) < 0:
        click.echo(
            f"ppo: warning: the critic explains {mean:.2f} of the variance of the returns (last third): it adds noise; "
            "raise ppo.value_learning_rate, or set ppo.advantage: rloo, which has none"
        )


@click.command(help=__doc__)
def main() -> None:
    stage = Stage("ppo")
    settings = stage.section("ppo", PPOSettings)
    stage.start()
    tokenizer = load_tokenizer(BASE)
    rows = read_rows(PROMPTS, Prompt)
    encoded = [encode_prompt(tokenizer, row.messages) for row in rows]
    lengths = [len(ids) for ids in encoded]
    rows, dropped = drop_too_long(rows, lengths, settings.max_prompt_length, "ppo.max_prompt_length")
    encoded = [ids for ids in encoded if len(ids) <= settings.max_prompt_length]
    watched = random.Random(row_seed(stage.seed, "ppo samples")).sample(rows, min(NUM_SAMPLES, len(rows)))

    init, learned = Path("models") / settings.init, Path("data") / settings.init / "ift.jsonl"
    history: list[dict[str, float]] = []
    samples: list[TrainingSample] = []
    with stage.work([BASE, init, REWARD, PROMPTS]) as work:
        stack = AdapterStack(BASE, stage.runtime)
        adapters = {"policy": init, "reference": init, "reward": REWARD}
        if settings.advantage == "gae":
            adapters["value"] = REWARD  # the critic starts from the reward model's features
        for name, model_dir in adapters.items():
            stack.add(name, model_dir)
        lengths = completion_lengths(tokenizer, learned)
        warn_if_capped("ppo.max_new_tokens", settings.max_new_tokens, lengths, learned)
        trainer = PPOTrainer(stack, encoded, settings, stage.seed, stage.runtime.batch_size)
        checkpoint, pace = work.checkpoint(), Pace()
        if (saved := checkpoint.load()) is not None:
            tensors, state = saved
            trainer.load_state_dict(tensors, state["trainer"])
            history, samples = state["history"], [TrainingSample.model_validate(row) for row in state["samples"]]
            click.echo(f"ppo: resumes after update {trainer.updates_done} of {settings.num_updates}")
        with tqdm(total=settings.num_updates, initial=len(history), desc="ppo", unit="update") as progress:
            while trainer.updates_done < settings.num_updates:
                if trainer.updates_done in (0, settings.num_updates // 2):
                    samples += sample_answers(stack, watched, settings, trainer.updates_done)
                row = trainer.step()
                history.append(row)
                if pace.due():
                    tensors, state = trainer.state_dict()
                    described = [sample.model_dump(mode="json") for sample in samples]
                    checkpoint.save(tensors, {"trainer": state, "history": history, "samples": described})
                    pace.saved()
                work.check_parent()
                progress.set_postfix({key: f"{row[key]:.2f}" for key in ("mean_reward", "kl", "eos_rate")})
                progress.update()
        samples += sample_answers(stack, watched, settings, settings.num_updates)
        with replacing(Path("models/ppo")) as temporary:
            stack.save("policy", temporary)
            copy_tokenizer(BASE, temporary)
            parents = {"base": BASE, "parent": init, "reference": init, "reward": REWARD}
            write_model_card(temporary, stage, parents, {"prompts": PROMPTS})
        write_csv(Path("data/ppo/history.csv"), history)
        write_rows(Path("data/ppo/samples.jsonl"), samples)
    warn_of_critic(history)
    click.echo(
        f"ppo: {len(history)} updates of {settings.rollout_batch_size} responses, mean reward "
        f"{history[0]['mean_reward']:.2f} -> {history[-1]['mean_reward']:.2f}; {dropped} prompts dropped as too long"
    )


if __name__ == "__main__":
    main()
