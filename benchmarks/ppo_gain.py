"""What PPO gained on held-out prompts: `python -m benchmarks.ppo_gain models/ppo`, after `dvc repro`.

Samples one response a prompt from the start (models/<ppo.init>) and from each given model, with equal random numbers,
and reports reward, score, KL to the start, how many end by themselves and how repetitive they are. Several models (PPO
with several seeds, say) may be given. The gain is in standard deviations of the start's rewards.
"""

import json
import statistics
from pathlib import Path
from typing import Any

import click
import torch

from align.core.params import Params
from align.core.rows import PreferencePair, read_rows
from align.generation.local import TorchGenerator
from align.generation.sampling import SamplingParams
from align.models.stack import AdapterStack
from align.models.tokenization import encode_prompt
from align.ppo.rollout import Batch
from align.ppo.trainer import PPOSettings, PPOTrainer
from align.report.statistics import distinct_2, words
from align.reward.scoring import reward_scores
from align.run.runtime import RuntimeSettings, row_seed, start


@torch.no_grad()
def measure(
    stack: AdapterStack, trainer: PPOTrainer, prompts: list[list[int]], seed: int, batch_size: int
) -> tuple[list[float], dict[str, Any]]:
    """Return the rewards of the stack's model `policy`, and a summary."""
    settings = trainer.settings
    with stack.using("policy") as model:
        sampled = TorchGenerator(model, stack.tokenizer, batch_size).generate(
            prompts,
            SamplingParams(settings.max_new_tokens, settings.temperature),
            [row_seed(seed, "ppo gain", i) for i in range(len(prompts))],
            description="responses",
        )
    completions = [completion for [completion] in sampled]
    tokens = [prompt + completion.token_ids for prompt, completion in zip(prompts, completions, strict=True)]
    scores = torch.tensor(reward_scores(stack, "reward", tokens, batch_size=batch_size))
    ended = torch.tensor([completion.finish_reason == "stop" for completion in completions])
    batch = Batch.collate(
        prompts, [c.token_ids for c in completions], int(stack.tokenizer.pad_token_id or 0), stack.device
    )
    logprobs = trainer._map_rows(batch, lambda part: trainer._logprobs("policy", part))
    reference = trainer._map_rows(batch, lambda part: trainer._logprobs("reference", part))
    kl = torch.where(batch.response_mask, logprobs - reference, 0.0).sum(1)
    rewards = trainer._penalized(scores, ended).tolist()
    summary = {
        "reward": statistics.fmean(rewards),
        "score": float(scores.mean()),
        "score_of_ended": float(scores[ended].mean()) if bool(ended.any()) else None,
        "kl": float(kl.mean()),
        "ended": float(ended.float().mean()),
        "tokens": statistics.fmean(len(completion.token_ids) for completion in completions),
        "distinct_2": distinct_2([words(completion.text) for completion in completions]),
    }
    for completion in completions[:4]:
        click.echo(f"  > {completion.text.strip()!r} ({completion.finish_reason})")
    return rewards, summary


@click.command(help=__doc__)
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--prompts", default=128, show_default=True, help="Held-out prompts, at most.")
def main(models: tuple[Path, ...], prompts: int) -> None:
    """Measure every model."""
    params = Params.read()
    runtime = params.section("runtime", RuntimeSettings)
    settings = params.section("ppo", PPOSettings)
    start(runtime, params.seed)
    pairs = read_rows(Path("data/prepared/preferences/test.jsonl"), PreferencePair)
    init = Path("models") / settings.init
    deviation, baseline = 0.0, 0.0
    results = {}
    for policy in (init, *models):
        stack = AdapterStack(Path("models/base"), runtime)
        folders = {"policy": policy, "reference": init, "reward": Path("models/reward"), "value": Path("models/reward")}
        for name, folder in folders.items():
            stack.add(name, folder)
        encoded = list({tuple(encode_prompt(stack.tokenizer, pair.messages)) for pair in pairs})
        held_out = sorted([list(ids) for ids in encoded if len(ids) <= settings.max_prompt_length])[:prompts]
        trainer = PPOTrainer(stack, held_out, settings, params.seed, runtime.batch_size)
        click.echo(f"{policy}, {len(held_out)} prompts")
        rewards, summary = measure(stack, trainer, held_out, params.seed, runtime.batch_size)
        if policy == init:
            baseline, deviation = summary["reward"], statistics.stdev(rewards)
        results[policy.as_posix()] = summary | {"gain_in_deviations": (summary["reward"] - baseline) / deviation}
        click.echo(json.dumps(results[policy.as_posix()]))
    click.echo(json.dumps(results))


if __name__ == "__main__":
    main()
