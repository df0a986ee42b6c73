"""RLHF with PPO: models/<ppo.init> + models/reward + <ppo.prompts> -> models/ppo.

`ppo.rewards` says what a response is worth; without the reward model among them, models/reward is not read.
data/<ppo.init>/ift.jsonl shows how long that model's replies should be; a lower `ppo.max_new_tokens` gets a warning.

A killed run resumes from its last checkpoint. Run with `python -m stages.ppo`.
"""

import random
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import click
from tqdm import tqdm

from align.core.files import replacing, write_csv
from align.core.rows import TaskPrompt, TrainingSample, read_numbered_rows, write_rows
from align.generation.local import TorchGenerator
from align.generation.sampling import SamplingParams
from align.models.base import copy_tokenizer, load_tokenizer
from align.models.card import write_model_card
from align.models.stack import AdapterStack
from align.models.tokenization import completion_lengths, drop_too_long, encode_prompt, warn_if_capped
from align.ppo.rewards import Rewards, Task
from align.ppo.settings import PPOSettings
from align.ppo.trainer import PPOTrainer
from align.reward.scoring import reward_scores
from align.run.runtime import row_seed
from align.run.stage import BASE, Stage
from align.run.work import Pace

REWARD = Path("models/reward")
NUM_SAMPLES = 4  # prompts whose answers show what training does


def sample_answers(
    stack: AdapterStack, tasks: Sequence[Task], encoded: Sequence[list[int]], trainer: PPOTrainer
) -> list[TrainingSample]:
    """Answer prompts greedily with the current policy."""
    settings, rewards = trainer.settings, trainer.rewards
    with stack.using("policy") as model:
        generator = TorchGenerator(model, stack.tokenizer, NUM_SAMPLES)
        sampled = generator.generate(
            encoded, SamplingParams(settings.max_new_tokens, temperature=0.0), [0] * len(encoded)
        )
    tokens = [ids + completion.token_ids for ids, [completion] in zip(encoded, sampled, strict=True)]
    model_scores = reward_scores(stack, "reward", tokens, batch_size=NUM_SAMPLES) if settings.uses_model else None
    replies = [(completion.text.strip(), completion.finish_reason) for [completion] in sampled]
    scores = rewards.totals(rewards.parts(model_scores, tasks, replies))
    return [
        TrainingSample(
            id=task.id,
            update=trainer.updates_done,
            prompt=task.prompt,
            response=response,
            finish_reason=finish_reason,
            score=score,
        )
        for task, (response, finish_reason), score in zip(tasks, replies, scores, strict=True)
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
    rewards, prompts = Rewards(settings.rewards), Path(settings.prompts)
    stage.start()
    tokenizer = load_tokenizer(BASE)
    numbered = read_numbered_rows(prompts, TaskPrompt, unique=["id"])
    tasks = [Task(row.id, row.conversation[-1].content, row.columns, f"{prompts}:{number}") for number, row in numbered]
    rewards.try_out(tasks)
    encoded = [encode_prompt(tokenizer, row.conversation) for _, row in numbered]
    lengths = [len(ids) for ids in encoded]
    tasks, dropped = drop_too_long(tasks, lengths, settings.max_prompt_length, "ppo.max_prompt_length")
    encoded = [ids for ids in encoded if len(ids) <= settings.max_prompt_length]
    rng = random.Random(row_seed(stage.seed, "ppo samples"))
    watched = rng.sample(range(len(tasks)), min(NUM_SAMPLES, len(tasks)))

    init, learned = Path("models") / settings.init, Path("data") / settings.init / "ift.jsonl"
    reward = {"reward": REWARD} if settings.uses_model else {}
    history: list[dict[str, float]] = []
    samples: list[TrainingSample] = []
    with stage.work([BASE, init, *reward.values(), prompts]) as work:
        stack = AdapterStack(BASE, stage.runtime)
        adapters = {"policy": init, "reference": init, **reward}
        if settings.advantage == "gae":
            adapters["value"] = REWARD  # the critic starts from the reward model's features
        for name, model_dir in adapters.items():
            stack.add(name, model_dir, float32=name != "reward")  # policy and reference alike
        lengths = completion_lengths(tokenizer, learned)
        warn_if_capped("ppo.max_new_tokens", settings.max_new_tokens, lengths, learned)
        trainer = PPOTrainer(stack, encoded, settings, stage.seed, stage.runtime.batch_size, tasks)
        show = partial(sample_answers, stack, [tasks[i] for i in watched], [encoded[i] for i in watched], trainer)
        checkpoint, pace = work.checkpoint(), Pace()
        if (saved := checkpoint.load()) is not None:
            tensors, state = saved
            trainer.load_state_dict(tensors, state["trainer"])
            history, samples = state["history"], [TrainingSample.model_validate(row) for row in state["samples"]]
            click.echo(f"ppo: resumes after update {trainer.updates_done} of {settings.num_updates}")
        with tqdm(total=settings.num_updates, initial=len(history), desc="ppo", unit="update") as progress:
            while trainer.updates_done < settings.num_updates:
                if trainer.updates_done in (0, settings.num_updates // 2):
                    samples += show()
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
        samples += show()
        with replacing(Path("models/ppo")) as temporary:
            stack.save("policy", temporary)
            copy_tokenizer(BASE, temporary)
            parents = {"base": BASE, "parent": init, "reference": init, **reward}
            write_model_card(temporary, stage, parents, {"prompts": prompts})
        write_csv(Path("data/ppo/history.csv"), history)
        write_rows(Path("data/ppo/samples.jsonl"), samples)
    warn_of_critic(history)
    click.echo(
        f"ppo: {len(history)} updates of {settings.rollout_batch_size} responses, mean reward "
        f"{history[0]['mean_reward']:.2f} -> {history[-1]['mean_reward']:.2f}; {dropped} prompts dropped as too long"
    )


if __name__ == "__main__":
    main()
