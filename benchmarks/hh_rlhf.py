"""Reward model and PPO on real human preferences, over several seeds, after `dvc repro`.

TRANSCRIPTS are rows of hh-rlhf as JSONL, gzipped or not. The stages run in folder WORKSPACE, with the params of this
project but for `CHANGES`; what is there already is not made again. Then m0 and the policy of each seed answer the same
held-out prompts with equal random numbers. Printed of each: reward, score, KL to m0 in nats per reply, the share that
ends by itself, tokens, distinct-2, and the gain in standard deviations of m0's rewards. The last line is one JSON
object.
"""

import gzip
import json
import os
import statistics
from pathlib import Path
from typing import Any

import click
import torch

from align.core.params import Params
from align.core.rows import PreferencePair, read_rows
from align.models.stack import AdapterStack
from align.models.tokenization import encode_prompt
from align.ppo.losses import token_logprobs
from align.ppo.settings import PPOSettings
from align.report.statistics import distinct_2, words
from align.run.runtime import RuntimeSettings, start
from benchmarks.rlhf import Answers, sample_answers
from benchmarks.workspace import link, project_params, run, write_params

CHANGES: dict[str, Any] = {
    "prepare_data": {
        "preferences": "data/transcripts.jsonl",
        "unusable_preferences": "drop",
        "preferences_test_fraction": 0.23,
    },
    "ppo": {
        "advantage": "gae",
        "num_generations": 1,
        "num_updates": 6,
        "num_ppo_epochs": 2,
        "learning_rate": 3e-4,
        "value_learning_rate": 3e-4,
        "kl_coef": 0.1,
        "lam": 0.95,
        "truncated": {"mode": "score", "value": -2.0, "soft_punish_cache": None},
        "temperature": 1.0,
        "max_new_tokens": 48,
        "max_prompt_length": 64,
    },
}


def changes(seed: int, dtype: str | None) -> dict[str, Any]:
    """Return `CHANGES` with a seed and, if given, another dtype."""
    return CHANGES | {"seed": seed, "runtime": {"dtype": dtype} if dtype else {}}


@torch.no_grad()
def reply_logprobs(
    stack: AdapterStack, name: str, prompts: list[list[int]], answers: Answers, temperature: float
) -> list[float]:
    """Return the log-probability of each answer by a model of the stack."""
    sums = []
    with stack.using(name) as model:
        for prompt, completion in zip(prompts, answers.completions, strict=True):
            ids = torch.tensor([prompt + completion.token_ids], device=stack.device)
            logits = model(input_ids=ids).logits[:, len(prompt) - 1 : -1]
            sums.append(float(token_logprobs(logits, ids[:, len(prompt) :], temperature).sum()))
    return sums


def measure(names: list[str], limit: int) -> dict[str, dict[str, float]]:
    """Measure m0 and the models, in the working directory."""
    params = Params.read()
    runtime, settings = params.section("runtime", RuntimeSettings), params.section("ppo", PPOSettings)
    start(runtime, params.seed)
    stack = AdapterStack(Path("models/base"), runtime)
    for name in (settings.init, "reward", *names):
        stack.add(name, Path("models") / name)
    pairs = read_rows(Path("data/prepared/preferences/test.jsonl"), PreferencePair)
    unique = {tuple(encode_prompt(stack.tokenizer, pair.messages)) for pair in pairs}
    prompts = sorted([list(ids) for ids in unique if len(ids) <= settings.max_prompt_length])[:limit]
    results: dict[str, dict[str, float]] = {}
    deviation = 0.0
    for name in (settings.init, *names):
        with stack.using(name) as model:
            answers = sample_answers(model, stack, prompts, settings, runtime, params.seed)
        ours, reference = (
            reply_logprobs(stack, which, prompts, answers, settings.temperature) for which in (name, settings.init)
        )
        deviation = deviation or statistics.stdev(answers.rewards)
        results[name] = answers.summary() | {
            "kl": statistics.fmean(a - b for a, b in zip(ours, reference, strict=True)),
            "distinct_2": distinct_2([words(completion.text) for completion in answers.completions]) or 0.0,
        }
        gain = results[name]["reward"] - results[settings.init]["reward"]
        results[name]["gain_in_deviations"] = gain / deviation if deviation else 0.0
        click.echo(f"{name}, {len(prompts)} prompts: {json.dumps(results[name])}")
    return results


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
            run(workspace, "stages.ppo")
            (workspace / "models/ppo").rename(workspace / "models" / name)
    write_params(workspace, changes(first, dtype))
    os.chdir(workspace)
    click.echo(json.dumps(measure(names, prompts)))


if __name__ == "__main__":
    main()
