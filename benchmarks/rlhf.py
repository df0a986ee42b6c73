"""PPO beside TRL 1.10, the last release with a PPO trainer, and the memory of PPO's four models.

Both sides start from the default run's adapters, widened to every layer, and train on the same prompts with the same
settings, each in a fresh process: ours, then TRL as it comes (a value model trained in full, gradient checkpointing,
bfloat16 autocast) in an environment of its own, which is made where it is missing. The policies then answer the same
held-out prompts with the same random numbers. The last line is one JSON object of ratios, ours divided by theirs; null
stands for a part that has not run and for a gain against none. Run with `python -m benchmarks.rlhf` after `dvc repro`.
"""

import json
import math
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from align.cli.export.merge import find_model, load_merged
from align.core.files import read_json, write_json
from align.core.params import Params
from align.core.rows import Message, PreferencePair, Prompt, read_rows
from align.generation.generator import Completion
from align.generation.local import TorchGenerator
from align.generation.sampling import SamplingParams
from align.models.adapters import save_adapter
from align.models.base import copy_tokenizer, load_base, load_tokenizer
from align.models.loading import ADAPTER_FILE
from align.models.stack import SCORE_FILE, AdapterStack
from align.models.tokenization import encode_prompt
from align.ppo.settings import PPOSettings
from align.ppo.trainer import PPOTrainer
from align.reward.scoring import reward_scores
from align.run.runtime import RuntimeSettings, row_seed, start
from benchmarks.workspace import environment

BASE, INIT, REWARD = Path("models/base"), Path("models/m0"), Path("models/reward")
PEER = "1.10.0"
# The peer runs on the very versions of this environment: the two differ in TRL alone.
SHARED = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers")
ROLES = ("policy", "reference", "reward", "value")
MEBIBYTE = 2**20
Ratios = dict[str, float | None]
Tokens = list[list[int]]
# Settings that PPOSettings and TRL's PPOConfig call the same.
SAME_WORDS = (
    *("learning_rate", "num_ppo_epochs", "per_device_train_batch_size", "kl_coef", "cliprange", "cliprange_value"),
    *("gamma", "lam", "temperature"),
)
# What the comparison fixes. The reward model likes replies that were cut off, of which it has not seen any: with less
# of a penalty a policy gains by never ending (docs/LOG.md).
FIXED: dict[str, Any] = {
    **{"advantage": "gae", "num_generations": 1},
    **{"kl_coef": 0.05, "adaptive_kl_target": None, "target_kl": None, "temperature": 1.0, "gamma": 1.0, "lam": 0.95},
    **{"cliprange": 0.2, "truncated": {"mode": "penalty", "value": 3.0, "soft_punish_cache": None}},
    **{"num_ppo_epochs": 4, "max_new_tokens": 32, "learning_rate": 2e-4, "value_learning_rate": 2e-4},
}
EVAL_PROMPTS, EVAL_SAMPLES = 64, 4  # held-out prompts, at most, and answers to each


@dataclass(frozen=True)
class Setup:
    """The adapters and settings that all runs share."""

    init: Path
    reward: Path
    runtime: RuntimeSettings
    seed: int

    def stack(self, names: Sequence[str] = ROLES) -> AdapterStack:
        """Return the four adapters of PPO over one base, or some of them."""
        start(self.runtime, self.seed)
        stack = AdapterStack(BASE, self.runtime)
        for name in names:
            stack.add(name, self.init if name in ("policy", "reference") else self.reward)
        return stack


@dataclass(frozen=True)
class Answers:
    """A policy's samples for held-out prompts, flat; `rewards` are scores as PPO treats a reply that does not end."""

    completions: list[Completion]
    scores: list[float]
    rewards: list[float]

    def summary(self) -> dict[str, float]:
        """Return the means, the share that ends by itself and the tokens per answer."""
        return {
            "reward": statistics.fmean(self.rewards),
            "score": statistics.fmean(self.scores),
            "ended": statistics.fmean(completion.finish_reason == "stop" for completion in self.completions),
            "tokens": statistics.fmean(len(completion.token_ids) for completion in self.completions),
        }


def sample_answers(
    model: PreTrainedModel,
    stack: AdapterStack,
    prompts: Tokens,
    settings: PPOSettings,
    runtime: RuntimeSettings,
    seed: int,
    samples: int = 1,
) -> Answers:
    """Let a model answer the prompts, and score the answers with the stack's reward model."""
    sampling = SamplingParams(settings.max_new_tokens, settings.temperature)
    seeds = [row_seed(seed, "rlhf benchmark", i) for i in range(len(prompts))]
    rows = TorchGenerator(model, stack.tokenizer, runtime.batch_size).generate(prompts, sampling, seeds, n=samples)
    ids = [prompt + answer.token_ids for prompt, row in zip(prompts, rows, strict=True) for answer in row]
    scores = reward_scores(stack, "reward", ids, batch_size=runtime.batch_size)
    completions = [answer for row in rows for answer in row]
    rewards = []
    for score, completion in zip(scores, completions, strict=True):
        cut = score - (settings.truncated.value or 0.0)  # mode penalty, by `FIXED`
        rewards.append(score if completion.finish_reason == "stop" else cut)
    return Answers(completions, scores, rewards)


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call `function` in a fresh process: its peak memory is its own, and it leaves nothing behind for the next."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def peak_rss() -> int:
    """Return the peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def widen(setup: Setup, adapter: Path, out: Path) -> None:
    """Write `adapter` with every layer adapted: the new layers have lora_B = 0, so that it computes what it did."""
    start(setup.runtime, setup.seed)
    config = LoraConfig.from_pretrained(str(adapter))
    config.layers_to_transform, config.inference_mode, config.base_model_name_or_path = None, False, None
    head: dict[str, Any] = {"num_labels": 1} if config.task_type == "SEQ_CLS" else {}
    kind = AutoModelForSequenceClassification if head else AutoModelForCausalLM
    model = get_peft_model(load_base(BASE, setup.runtime, kind, **head), config)
    set_peft_model_state_dict(model, load_file(adapter / ADAPTER_FILE))
    save_adapter(model, out)
    if head:
        shutil.copyfile(adapter / SCORE_FILE, out / SCORE_FILE)


def merge(adapter: Path, out: Path) -> None:
    """Write `adapter` merged into the base, as a full model."""
    load_merged(find_model(str(adapter))).save_pretrained(out)
    copy_tokenizer(BASE, out)


def train_ours(setup: Setup, settings: PPOSettings, prompts: Tokens, out: Path) -> dict[str, Any]:
    """Train with our trainer and write the policy's adapter; return the seconds of each update and the peak memory."""
    stack = setup.stack()
    trainer = PPOTrainer(stack, prompts, settings, setup.seed, setup.runtime.batch_size)
    seconds = []
    for _ in range(settings.num_updates):
        begin = time.perf_counter()
        trainer.step()
        seconds.append(time.perf_counter() - begin)
    peak = peak_rss()
    stack.save("policy", out)
    return {"seconds": seconds, "peak_rss": peak}


def peer_settings(setup: Setup, settings: PPOSettings) -> dict[str, Any]:
    """Return what `trl_ppo.py` needs, in the words of TRL's PPOConfig and PEFT's LoraConfig."""
    lora = LoraConfig.from_pretrained(str(setup.init))
    return {
        "num_threads": setup.runtime.threads,
        "dtype": setup.runtime.dtype,
        "score_bias": read_json(setup.reward / SCORE_FILE)["score_bias"],
        "lora": {key: getattr(lora, key) for key in ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora")}
        | {"target_modules": sorted(lora.target_modules or ())},
        "ppo": {key: getattr(settings, key) for key in SAME_WORDS}
        | {"missing_eos_penalty": settings.truncated.value}
        | {"num_mini_batches": 1, "stop_token": "eos", "num_sample_generations": 0, "save_strategy": "no"}
        | {"report_to": "none", "seed": setup.seed, "use_cpu": setup.runtime.torch_device.type == "cpu"}
        | {
            "gradient_accumulation_steps": settings.rollout_batch_size // settings.per_device_train_batch_size,
            "total_episodes": settings.num_updates * settings.rollout_batch_size,
            "response_length": settings.max_new_tokens,
        },
    }


def train_peer(python: Path, setup: Setup, settings: PPOSettings, prompts: Tokens, folder: Path) -> dict[str, Any]:
    """Do the same with TRL's PPO trainer from merged models; the policy is `folder`/out."""
    apart(merge, INIT, folder / "policy")
    apart(merge, REWARD, folder / "reward")
    write_json(folder / "settings.json", peer_settings(setup, settings) | {"prompts": prompts})
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [python, Path(__file__).with_name("trl_ppo.py"), folder]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | quiet)
    row: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    click.echo(f"peer: {', '.join(f'{name} {number}' for name, number in row['versions'].items())}")
    return row


def answer(setup: Setup, settings: PPOSettings, policies: Mapping[str, Path], prompts: Tokens) -> dict[str, Answers]:
    """Let each policy, an adapter or a full model, answer the same prompts with the same random numbers."""
    stack = setup.stack(["reward"])
    results = {}
    for name, folder in policies.items():
        full = (folder / "config.json").exists()
        if not full:
            stack.add(name, folder)
        with nullcontext(load_base(folder, setup.runtime)) if full else stack.using(name) as model:
            results[name] = sample_answers(model, stack, prompts, settings, setup.runtime, setup.seed, EVAL_SAMPLES)
    return results


@torch.no_grad()
def memory(setup: Setup, adapters: bool) -> tuple[int, int]:
    """Return the bytes of PPO's four models, as adapters or in full, and the process's peak once each has run."""
    token = torch.zeros(1, 8, dtype=torch.long, device=setup.runtime.torch_device)
    if adapters:
        stack = setup.stack()
        weights = [head.weight for head in stack.heads.values()] + list(stack.causal_lm.parameters())
        for name in ROLES:
            with stack.using(name) as model:
                model(input_ids=token)
    else:
        start(setup.runtime, setup.seed)
        heads: list[Any] = [AutoModelForCausalLM] * 2 + [AutoModelForSequenceClassification] * 2
        models = [load_base(BASE, setup.runtime, head) for head in heads]
        weights = [weight for model in models for weight in model.parameters()]
        for model in models:
            model(input_ids=token)
    return sum(weight.nbytes for weight in weights), peak_rss()


def gain(after: Answers, before: Answers) -> tuple[float, float]:
    """Return by how much the mean reward is higher, and the standard error over the prompts."""
    differences = [a - b for a, b in zip(after.rewards, before.rewards, strict=True)]
    prompts = [statistics.fmean(part) for part in zip(*[iter(differences)] * EVAL_SAMPLES, strict=True)]
    return statistics.fmean(prompts), statistics.stdev(prompts) / math.sqrt(len(prompts))


def compare_ppo(setup: Setup, settings: PPOSettings, python: Path, dtype: str, scratch: Path) -> Ratios:
    """Train each side, let the policies answer held-out prompts, and print and return the outcome."""
    tokenizer, rows = load_tokenizer(BASE), settings.rollout_batch_size

    def encode(conversations: Iterable[Sequence[Message]]) -> Tokens:
        unique = dict.fromkeys(tuple(encode_prompt(tokenizer, messages)) for messages in conversations)
        return [list(ids) for ids in unique if len(ids) <= settings.max_prompt_length]

    asked = encode(row.messages for row in read_rows(Path("data/prepared/prompts.jsonl"), Prompt))
    unseen = encode(row.messages for row in read_rows(Path("data/prepared/preferences/test.jsonl"), PreferencePair))
    held_out = [ids for ids in unseen if ids not in asked][:EVAL_PROMPTS]
    drawn = random.Random(setup.seed).choices(asked, k=settings.num_updates * rows)
    ours = replace(setup, runtime=setup.runtime.model_copy(update={"dtype": dtype}))
    runs = {
        "ours": apart(train_ours, ours, settings, drawn, scratch / "ours"),
        "TRL": train_peer(python, setup, settings, drawn, scratch),
    }
    policies = {"before": setup.init, "ours": scratch / "ours", "TRL": scratch / "out"}
    answers = apart(answer, setup, settings, policies, held_out)
    click.echo(
        f"\n{settings.num_updates} updates of {rows} rollouts, {settings.max_new_tokens} new tokens, "
        f"{settings.num_ppo_epochs} epochs, learning rate {settings.learning_rate:g}; ours in {dtype}; answers to "
        f"{len(held_out)} held-out prompts x {EVAL_SAMPLES}; reward: the score, less a penalty where the EOS is missing"
    )
    gains = {name: gain(answers[name], answers["before"]) for name in runs}
    seconds = {name: statistics.median(run["seconds"]) / rows for name, run in runs.items()}
    for name, found in answers.items():
        line = f"{name:6}" + "".join(f"  {key} {value:.3f}" for key, value in found.summary().items())
        if name in runs:
            line += f"  gain {gains[name][0]:+.3f} ± {gains[name][1]:.3f}  seconds per rollout {seconds[name]:.3f}"
            line += f"  peak {runs[name]['peak_rss'] / MEBIBYTE:.0f} MiB"
        click.echo(line)
    return {
        "reward_gain_vs_trl": gains["ours"][0] / gains["TRL"][0] if gains["TRL"][0] > 0 else None,
        "seconds_per_rollout_vs_trl": seconds["ours"] / seconds["TRL"],
    }


@click.command(help=__doc__)
@click.option("--only", type=click.Choice(["ppo", "memory"]), multiple=True, help="Run these parts alone.")
@click.option("--updates", default=4, show_default=True)
@click.option("--rollouts", default=16, show_default=True, help="Responses an update.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), help="Of our weights.  [default: runtime.dtype]")
@click.option("--trl-venv", type=click.Path(path_type=Path), default=".venv-trl1.10", show_default=True)
def main(only: tuple[str, ...], updates: int, rollouts: int, dtype: str | None, trl_venv: Path) -> None:
    """Run the parts, print their figures, and last the ratios."""
    parts = only or ("ppo", "memory")
    params = Params.read()
    runtime = params.section("runtime", RuntimeSettings)
    start(runtime, params.seed)
    versions = ", ".join(f"{name} {version(name)}" for name in ("trl", *SHARED))
    click.echo(f"ours: {versions}; {runtime.torch_device}, {runtime.threads} threads, {runtime.dtype}")
    names = ("reward_gain_vs_trl", "seconds_per_rollout_vs_trl", "weights_memory_vs_four_models")
    ratios: Ratios = dict.fromkeys(names)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        setup = Setup(scratch / "wide-init", scratch / "wide-reward", runtime, params.seed)
        apart(widen, setup, INIT, setup.init)
        apart(widen, setup, REWARD, setup.reward)
        if "ppo" in parts:
            sizes = {"num_updates": updates, "rollout_batch_size": rollouts, "mini_batch_size": rollouts}
            sizes["per_device_train_batch_size"] = math.gcd(rollouts, 8)
            own = params.section("ppo", PPOSettings).model_dump()
            settings = PPOSettings.model_validate(own | FIXED | sizes)
            pins = [f"trl=={PEER}", *(f"{name}=={version(name).partition('+')[0]}" for name in SHARED)]
            python = environment(trl_venv, pins)
            ratios |= compare_ppo(setup, settings, python, dtype or runtime.dtype, scratch)
        if "memory" in parts:
            found = {"adapters": apart(memory, setup, True), "models": apart(memory, setup, False)}
            for kind, (weights, peak) in found.items():
                click.echo(f"four {kind}: weights {weights / MEBIBYTE:.1f} MiB, peak {peak / MEBIBYTE:.0f} MiB")
            ratios["weights_memory_vs_four_models"] = found["adapters"][0] / found["models"][0]
    click.echo(json.dumps({key: None if value is None else round(value, 4) for key, value in ratios.items()}))


if __name__ == "__main__":
    main()
