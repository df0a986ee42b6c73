"""RLHF against its peers, side by side in one run, after `dvc repro`: PPO, memory of the weights, reward model.

PPO runs against TRL 1.10, the last release with a PPO trainer (in an environment of its own, made where it is missing),
and against "reward-blind", the loss -(rewards - kl_coef * kl).mean(), in which the reward is a constant. Each side
trains in a fresh process, one after the other. The last line is one JSON object of ratios, ours divided by theirs (of
the accuracies, the difference); null stands for a part that has not run and for a gain against none. Run with
`python -m benchmarks.rlhf`.
"""

import json
import math
import os
import random
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from trl import RewardConfig, RewardTrainer

from align.core.files import read_json, write_json
from align.core.params import Params
from align.core.rows import Message, PreferencePair, Prompt, read_rows
from align.generation.local import TorchGenerator
from align.generation.sampling import SamplingParams
from align.models.adapters import LoraSettings, save_adapter
from align.models.base import copy_tokenizer, load_base, load_tokenizer
from align.models.loading import ADAPTER_FILE
from align.models.stack import SCORE_FILE, AdapterStack
from align.models.tokenization import drop_too_long, encode_prompt
from align.ppo.rollout import Rollout
from align.ppo.trainer import PPOSettings, PPOTrainer
from align.report.statistics import bootstrap_interval
from align.reward.scoring import reward_scores
from align.reward.training import RewardModelSettings, encode_pairs, fit, training_rows
from align.run.runtime import RuntimeSettings, row_seed, start
from stages.prepare_data import read_preferences

PEER = "1.10.0"
# The peer runs on the very versions of this environment: the two differ in TRL alone.
SHARED = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers")
SCRIPT = Path(__file__).with_name("trl_ppo.py")
ROLES = ("policy", "reference", "reward", "value")
MEBIBYTE = 2**20
# Settings that PPOSettings and TRL's PPOConfig call the same.
SAME_WORDS = (
    "learning_rate",
    "num_ppo_epochs",
    "per_device_train_batch_size",
    "kl_coef",
    "cliprange",
    "cliprange_value",
    "gamma",
    "lam",
    "temperature",
    "missing_eos_penalty",
)

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Setup:
    """What all runs share."""

    base: Path
    init: Path
    reward: Path
    runtime: RuntimeSettings
    seed: int

    def stack(self) -> AdapterStack:
        """Return the four adapters of PPO over one base."""
        start(self.runtime, self.seed)
        stack = AdapterStack(self.base, self.runtime)
        for name in ROLES:
            stack.add(name, self.init if name in ("policy", "reference") else self.reward)
        return stack


@dataclass(frozen=True)
class Training:
    """A run of PPO: seconds and mean reward (with the penalty for a missing EOS) of each update, peak memory."""

    seconds: list[float]
    rewards: list[float]
    peak_rss: int


@dataclass(frozen=True)
class Answers:
    """A policy's samples for the held-out prompts: the mean over a prompt's samples, and over all of them."""

    scores: list[float]
    rewards: list[float]  # scores, less the penalty where the EOS is missing
    ended: float
    tokens: float

    def gain(self, before: "Answers") -> tuple[float, float]:
        """Return by how much the mean reward is above that of `before`, and the standard error over the prompts."""
        gains = [after - then for after, then in zip(self.rewards, before.rewards, strict=True)]
        return statistics.fmean(gains), statistics.stdev(gains) / math.sqrt(len(gains))


@dataclass(frozen=True)
class RewardTraining:
    """A run of reward-model training; tokens are the real ones of both replies that the steps saw."""

    wins: list[float]  # of each held-out pair: 1 if its chosen side scores higher, 0.5 for a tie
    tokens: int
    seconds: float

    @property
    def accuracy(self) -> float:
        """Share of the pairs that it orders right."""
        return statistics.fmean(self.wins)


def apart(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `function` in a fresh process: its peak memory is its own, and it leaves nothing behind for the next."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def peak_rss() -> int:
    """Return the peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def load_for(config: LoraConfig, setup: Setup) -> PreTrainedModel:
    """Load the base with the head that an adapter asks for."""
    if config.task_type == "SEQ_CLS":
        return load_base(setup.base, setup.runtime, AutoModelForSequenceClassification, num_labels=1)
    return load_base(setup.base, setup.runtime, AutoModelForCausalLM)


def widen(setup: Setup, adapter: Path, out: Path) -> None:
    """Write `adapter` with every layer adapted: the new layers have lora_B = 0, so that it computes what it did."""
    start(setup.runtime, setup.seed)
    config = LoraConfig.from_pretrained(str(adapter))
    config.layers_to_transform, config.inference_mode, config.base_model_name_or_path = None, False, None
    model = get_peft_model(load_for(config, setup), config)
    set_peft_model_state_dict(model, load_file(adapter / ADAPTER_FILE))
    save_adapter(model, out)
    if (adapter / SCORE_FILE).exists():
        shutil.copyfile(adapter / SCORE_FILE, out / SCORE_FILE)


def merge(setup: Setup, adapter: Path, out: Path) -> None:
    """Write `adapter` merged into the base, as a full model."""
    start(setup.runtime, setup.seed)
    config = LoraConfig.from_pretrained(str(adapter))
    PeftModel.from_pretrained(load_for(config, setup), adapter).merge_and_unload().save_pretrained(out)
    copy_tokenizer(setup.base, out)


class RewardBlindTrainer(PPOTrainer):
    """The same rollouts with the loss -(rewards - kl_coef * kl).mean(), in which only log pi has a gradient."""

    def _optimize(self, rollout: Rollout) -> dict[str, float]:
        rewards = self._penalized(rollout.scores, rollout.ended)
        for _ in range(self.settings.num_ppo_epochs):
            for rows in torch.arange(len(rewards), device=rewards.device).split(
                self.settings.per_device_train_batch_size
            ):
                part = rollout.rows(rows)
                logprobs = self._logprobs("policy", part)
                kl = torch.where(part.response_mask, logprobs - part.ref_logprobs, 0.0).sum(1)
                (-(rewards[rows] - self.kl_coef * kl).sum() / len(rewards)).backward()
            torch.nn.utils.clip_grad_norm_(self.policy_parameters, self.settings.max_grad_norm)
            self.optimizers["policy"].step()
            self.optimizers["policy"].zero_grad()
        return {}


def train_policy(
    setup: Setup, settings: PPOSettings, trainer_class: type[PPOTrainer], prompts: list[list[int]], out: Path
) -> Training:
    """Train with one of our own trainers and write the policy's adapter."""
    stack = setup.stack()
    trainer = trainer_class(stack, prompts, settings, setup.seed, setup.runtime.batch_size)
    seconds, rewards = [], []
    for _ in range(settings.num_updates):
        begin = time.perf_counter()
        rewards.append(trainer.step()["mean_reward"])
        seconds.append(time.perf_counter() - begin)
    peak = peak_rss()
    stack.save("policy", out)
    return Training(seconds, rewards, peak)


def peer_settings(setup: Setup, settings: PPOSettings, peer: str) -> dict[str, Any]:
    """Return what `trl_ppo.py` needs, in the words of TRL's PPOConfig and PEFT's LoraConfig; see option --ppo-peer."""
    lora = LoraConfig.from_pretrained(str(setup.init))
    bias = read_json(setup.reward / SCORE_FILE)["score_bias"] if (setup.reward / SCORE_FILE).exists() else 0.0
    return {
        "num_threads": setup.runtime.num_threads,
        "dtype": setup.runtime.dtype,
        "score_bias": bias,
        "value": "full" if peer == "stock" else "lora",
        "lora": {
            "r": lora.r,
            "lora_alpha": lora.lora_alpha,
            "lora_dropout": lora.lora_dropout,
            "target_modules": sorted(lora.target_modules or ()),
            "layers_to_transform": lora.layers_to_transform,
        },
        "ppo": {key: getattr(settings, key) for key in SAME_WORDS}
        | {
            "gradient_accumulation_steps": settings.rollout_batch_size // settings.per_device_train_batch_size,
            "num_mini_batches": 1,
            "total_episodes": settings.num_updates * settings.rollout_batch_size,
            "response_length": settings.max_new_tokens,
            "stop_token": "eos",
            "num_sample_generations": 0,
            "use_cpu": setup.runtime.torch_device.type == "cpu",
            "seed": setup.seed,
            "report_to": "none",
            "save_strategy": "no",
        }
        # bf16 there is autocast; the weights are in `dtype` either way, as ours are.
        | ({} if peer == "stock" else {"gradient_checkpointing": False, "bf16": False}),
    }


def peer_python(venv: Path) -> Path:
    """Return the Python of the peer's environment, which is made where TRL cannot be found in it."""
    python = venv.absolute() / "bin" / "python"  # not resolved: the link is what makes it the environment's
    check = f"from importlib.metadata import version; assert version('trl') == '{PEER}'"
    if python.exists() and subprocess.run([python, "-c", check], stderr=subprocess.DEVNULL).returncode == 0:
        return python
    click.echo(f"installing TRL {PEER} in {venv}")
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    (venv / ".gitignore").write_text("*\n", encoding="utf-8")  # the environment may lie in the repository
    pins = [f"trl=={PEER}", *(f"{name}=={version(name).partition('+')[0]}" for name in SHARED)]
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-compile", *pins], check=True)
    return python


def train_peer(
    python: Path, setup: Setup, settings: PPOSettings, peer: str, prompts: list[list[int]], folder: Path
) -> tuple[Training, dict[str, str]]:
    """Train with TRL's PPO trainer from merged models; the policy is `folder`/out. Returns its versions too."""
    apart(merge, setup, setup.init, folder / "policy")
    apart(merge, setup, setup.reward, folder / "reward")
    (folder / "prompts.jsonl").write_text("".join(f"{json.dumps(ids)}\n" for ids in prompts), encoding="utf-8")
    write_json(folder / "settings.json", peer_settings(setup, settings, peer))
    options = {name: folder / name for name in ("policy", "reward", "out")}
    options |= {"prompts": folder / "prompts.jsonl", "settings": folder / "settings.json"}
    command = [python, SCRIPT, *(part for name, path in options.items() for part in (f"--{name}", path))]
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | quiet)
    row = json.loads(finished.stdout.splitlines()[-1])
    versions = row.pop("versions")
    return Training(**row), versions


def answer(
    setup: Setup,
    settings: PPOSettings,
    policies: Mapping[str, Path],
    prompts: list[list[int]],
    samples: int,
) -> dict[str, Answers]:
    """Let each policy, an adapter or a full model, answer the same prompts with the same random numbers."""
    start(setup.runtime, setup.seed)
    stack = AdapterStack(setup.base, setup.runtime)
    stack.add("reward", setup.reward)
    sampling = SamplingParams(settings.max_new_tokens, settings.temperature)
    seeds = [row_seed(setup.seed, "rlhf benchmark", i) for i in range(len(prompts))]
    results = {}
    for name, folder in policies.items():
        arguments, size = (prompts, sampling, seeds), setup.runtime.batch_size
        if (folder / "config.json").exists():
            model = load_base(folder, setup.runtime)
            answers = TorchGenerator(model, stack.tokenizer, size).generate(*arguments, n=samples)
            del model
        else:
            stack.add(name, folder)
            with stack.using(name) as model:
                answers = TorchGenerator(model, stack.tokenizer, size).generate(*arguments, n=samples)
        flat = [completion for row in answers for completion in row]
        rows = [ids + completion.token_ids for ids, row in zip(prompts, answers, strict=True) for completion in row]
        scores = reward_scores(stack, "reward", rows, batch_size=setup.runtime.batch_size)
        ended = [completion.finish_reason == "stop" for completion in flat]
        rewards = [score - settings.missing_eos_penalty * (not stop) for score, stop in zip(scores, ended, strict=True)]
        results[name] = Answers(
            _means(scores, samples),
            _means(rewards, samples),
            statistics.fmean(ended),
            statistics.fmean(len(completion.token_ids) for completion in flat),
        )
    return results


def _means(values: Sequence[float], size: int) -> list[float]:
    return [statistics.fmean(values[i : i + size]) for i in range(0, len(values), size)]


@torch.no_grad()
def stack_memory(setup: Setup) -> tuple[int, int]:
    """Return the bytes of the weights of our four models, and the process's peak once each of them has run."""
    stack = setup.stack()
    for name in ROLES:
        with stack.using(name) as model:
            model(input_ids=torch.zeros(1, 8, dtype=torch.long, device=stack.device))
    heads = sum(head.weight.nbytes for head in stack.heads.values())
    return sum(parameter.nbytes for parameter in stack.causal_lm.parameters()) + heads, peak_rss()


@torch.no_grad()
def full_memory(setup: Setup) -> tuple[int, int]:
    """Return the same of four full models."""
    start(setup.runtime, setup.seed)
    models = [load_base(setup.base, setup.runtime) for _ in range(2)]
    models += [load_base(setup.base, setup.runtime, AutoModelForSequenceClassification, num_labels=1) for _ in range(2)]
    for model in models:
        model(input_ids=torch.zeros(1, 8, dtype=torch.long, device=model.device))
    return sum(parameter.nbytes for model in models for parameter in model.parameters()), peak_rss()


@torch.no_grad()
def wins(model: Any, rows: Sequence[Mapping[str, Any]], device: torch.device) -> list[float]:
    """Return of each pair whether its chosen side scores higher, a tie counting one half; no row is padded."""
    model.eval()
    found = []
    for row in rows:
        chosen, rejected = (
            float(model(input_ids=torch.tensor([row[key]], device=device)).logits)
            for key in ("chosen_ids", "rejected_ids")
        )
        found.append(0.5 if chosen == rejected else float(chosen > rejected))
    return found


def trained_tokens(trainer: RewardTrainer) -> int:
    """Return how many real tokens the steps of a finished run saw, by TRL's own count."""
    return int(max(entry.get("num_tokens", 0) for entry in trainer.state.log_history))


def train_reward_ours(
    setup: Setup,
    lora: LoraSettings,
    settings: RewardModelSettings,
    pairs: list[PreferencePair],
    held_out: list[PreferencePair],
    steps: int,
) -> RewardTraining:
    """Train as stage reward_model does."""
    start(setup.runtime, setup.seed)
    tokenizer = load_tokenizer(setup.base)
    rows = training_rows(pairs, encode_pairs(tokenizer, pairs), settings.use_margin)
    rows, _ = drop_too_long(rows, [row["length"] for row in rows], settings.max_length, "reward_model.max_length")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        history = folder / "history.csv"
        begin = time.perf_counter()
        trainer = fit(setup.base, rows, setup.runtime, lora, settings, setup.seed, history, folder, max_steps=steps)
        seconds = time.perf_counter() - begin
    encoded = encode_pairs(tokenizer, held_out)
    return RewardTraining(wins(trainer.model, encoded, setup.runtime.torch_device), trained_tokens(trainer), seconds)


def train_reward_trl(
    setup: Setup,
    settings: RewardModelSettings,
    pairs: list[PreferencePair],
    held_out: list[PreferencePair],
    steps: int,
    options: dict[str, Any],
) -> RewardTraining:
    """Train with trl.RewardTrainer from messages: its defaults, but for what both sides share and `options`."""
    start(setup.runtime, setup.seed)
    tokenizer = load_tokenizer(setup.base)
    device = setup.runtime.torch_device
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = RewardTrainer(
            model=str(setup.base),
            args=RewardConfig(
                output_dir=scratch,
                learning_rate=settings.learning_rate,
                per_device_train_batch_size=settings.per_device_train_batch_size,
                gradient_accumulation_steps=settings.gradient_accumulation_steps,
                max_length=settings.max_length,
                max_steps=steps,
                seed=setup.seed,
                use_cpu=device.type == "cpu",
                report_to="none",
                save_strategy="no",
                **options,
            ),
            train_dataset=Dataset.from_list([conversations(pair) for pair in pairs]),
            processing_class=tokenizer,
            # Rank and alpha are the defaults of TRL's command line.
            peft_config=LoraConfig(
                task_type="SEQ_CLS", r=16, lora_alpha=32, target_modules="all-linear", modules_to_save=["score"]
            ),
        )
        trainer.train()
        seconds = time.perf_counter() - begin
    rows = [
        {
            f"{side}_ids": tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
            for side, messages in conversations(pair).items()
        }
        for pair in held_out
    ]
    return RewardTraining(wins(trainer.model, rows, device), trained_tokens(trainer), seconds)


def conversations(pair: PreferencePair) -> dict[str, list[dict[str, str]]]:
    """Return both sides of a pair as TRL takes them: whole conversations as messages."""
    prompt = [message.model_dump() for message in pair.messages]
    sides = {"chosen": pair.chosen, "rejected": pair.rejected}
    return {side: [*prompt, {"role": "assistant", "content": text}] for side, text in sides.items()}


def read_pairs(path: Path) -> list[PreferencePair]:
    """Read pairs as stage prepare_data writes them, or hh-rlhf transcripts."""
    with path.open(encoding="utf-8") as stream:
        prepared = "messages" in json.loads(stream.readline())
    return read_rows(path, PreferencePair) if prepared else read_preferences(path, drop=True)[0]


def draw(prompts: list[list[int]], count: int, seed: int) -> list[list[int]]:
    """Return `count` prompts, of shuffled passes over all of them."""
    drawn: list[list[int]] = []
    while len(drawn) < count:
        drawn += random.Random(row_seed(seed, "rlhf benchmark", len(drawn))).sample(prompts, len(prompts))
    return drawn[:count]


def table(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
    """Print figures, a row a measure."""
    width = max(map(len, rows))
    widths = [max(len(column), *(len(row[i]) for row in rows.values())) for i, column in enumerate(columns)]
    click.echo(f"\n{title}")
    for name, cells in {"": columns, **rows}.items():
        aligned = (cell.rjust(size) for cell, size in zip(cells, widths, strict=True))
        click.echo("  ".join([name.ljust(width), *aligned]))


def ppo_settings(params: Params, **changes: Any) -> PPOSettings:
    """Return section `ppo` of params.yaml with what this comparison fixes, and `changes`."""
    fixed = {
        "kl_coef": 0.05,
        "adaptive_kl_target": None,
        "target_kl": None,
        "temperature": 1.0,
        # The reward model likes cut-off replies, of which it has not seen any (docs/LOG.md): with less of a penalty a
        # policy gains by never ending, and so does one that drifts without any reward.
        "missing_eos_penalty": 3.0,
        "missing_eos_score": None,
        "gamma": 1.0,
        "lam": 0.95,
        "cliprange": 0.2,
    }
    return PPOSettings.model_validate(params.section("ppo", PPOSettings).model_dump() | fixed | changes)


def encode_unique(setup: Setup, conversations: Sequence[Sequence[Message]], limit: int) -> list[list[int]]:
    """Return the ids of the conversations, each once, without those longer than `limit`."""
    tokenizer = load_tokenizer(setup.base)
    unique = dict.fromkeys(tuple(encode_prompt(tokenizer, messages)) for messages in conversations)
    rows, _ = drop_too_long([list(ids) for ids in unique], list(map(len, unique)), limit, "ppo.max_prompt_length")
    return rows


def compare_ppo(
    setup: Setup,
    settings: PPOSettings,
    python: Path,
    stock_or_lean: str,
    dtype: str,
    prompts: list[list[int]],
    held_out: list[list[int]],
    samples: int,
    scratch: Path,
) -> dict[str, float | None]:
    """Train each side, let the policies answer the held-out prompts, and print and return the outcome."""
    fast = replace(setup, runtime=setup.runtime.model_copy(update={"dtype": dtype}))
    ours = apart(train_policy, fast, settings, PPOTrainer, prompts, scratch / "ours")
    theirs = setup if stock_or_lean == "stock" else fast
    peer, versions = train_peer(python, theirs, settings, stock_or_lean, prompts, scratch)
    blind = apart(train_policy, fast, settings, RewardBlindTrainer, prompts, scratch / "blind")
    policies = {
        "before": setup.init,
        "ours": scratch / "ours",
        "TRL": scratch / "out",
        "reward-blind": scratch / "blind",
    }
    answers = apart(answer, setup, settings, policies, held_out, samples)
    before = answers.pop("before")
    runs = {"ours": ours, "TRL": peer, "reward-blind": blind}
    gains = {name: found.gain(before) for name, found in answers.items()}
    count = settings.rollout_batch_size
    seconds = {name: statistics.median(run.seconds) / count for name, run in runs.items()}
    scores = {name: statistics.fmean(found.scores) - statistics.fmean(before.scores) for name, found in answers.items()}
    config = LoraConfig.from_pretrained(str(setup.init))
    click.echo(f"\npeer: {', '.join(f'{name} {number}' for name, number in versions.items())}")
    table(
        f"PPO: {settings.num_updates} updates of {count} rollouts, {settings.max_new_tokens} new tokens, "
        f"{settings.num_ppo_epochs} epochs, learning rate {settings.learning_rate:g}, LoRA of rank {config.r} on "
        f"{'every layer' if config.layers_to_transform is None else 'its own layers'}\n"
        f"ours in {dtype}, TRL {stock_or_lean}\n"
        f"answers to {len(held_out)} held-out prompts x {samples}; before training their mean "
        f"reward is {statistics.fmean(before.rewards):.3f} (the score, {statistics.fmean(before.scores):.3f}, less the "
        f"penalty where the EOS is missing), {before.ended:.2f} of them end, {before.tokens:.1f} tokens",
        list(runs),
        {
            "gain of the mean reward": [f"{gains[name][0]:+.3f} ± {gains[name][1]:.3f}" for name in runs],
            "the same per 100 rollouts": [
                f"{100 * gains[name][0] / (count * settings.num_updates):+.3f}" for name in runs
            ],
            "gain of the mean score": [f"{scores[name]:+.3f}" for name in runs],
            "share that ends": [f"{answers[name].ended:.2f}" for name in runs],
            "tokens an answer": [f"{answers[name].tokens:.1f}" for name in runs],
            "seconds a rollout, median update": [f"{seconds[name]:.3f}" for name in runs],
            "seconds of all updates": [f"{math.fsum(run.seconds):.1f}" for run in runs.values()],
            "mean reward of the first update, own count": [f"{run.rewards[0]:.3f}" for run in runs.values()],
            "mean reward of the last update, own count": [f"{run.rewards[-1]:.3f}" for run in runs.values()],
            "peak memory of the process, MiB": [f"{run.peak_rss / MEBIBYTE:.0f}" for run in runs.values()],
        },
    )
    return {
        "reward_gain_vs_trl": gains["ours"][0] / gains["TRL"][0] if gains["TRL"][0] > 0 else None,
        "seconds_per_rollout_vs_trl": seconds["ours"] / seconds["TRL"],
    }


def compare_memory(setup: Setup) -> dict[str, float | None]:
    """Measure both ways of holding PPO's four models, and print and return the outcome."""
    found = {"four adapters": apart(stack_memory, setup), "four models": apart(full_memory, setup)}
    table(
        "Memory of policy, reference, reward and value",
        list(found),
        {
            "weights, MiB": [f"{weights / MEBIBYTE:.1f}" for weights, _ in found.values()],
            "peak of the process after one forward each, MiB": [f"{peak / MEBIBYTE:.0f}" for _, peak in found.values()],
        },
    )
    return {"weights_memory_vs_four_models": found["four adapters"][0] / found["four models"][0]}


def interval(values: Sequence[float]) -> str:
    """Return the mean with its 95% bootstrap interval, as text."""
    low, high = bootstrap_interval([[value] for value in values]) or (math.nan, math.nan)
    return f"{statistics.fmean(values):.3f} [{low:.3f}, {high:.3f}]"


def compare_reward(
    setup: Setup,
    lora: LoraSettings,
    settings: RewardModelSettings,
    pairs: list[PreferencePair],
    held_out: list[PreferencePair],
    steps: int | None,
    peer: str,
) -> dict[str, float | None]:
    """Train a reward model both ways, and print and return the outcome."""
    batch = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
    if steps is not None:  # of a longer pass ours, which groups by length, would see the longest pairs and TRL any
        pairs = pairs[: steps * batch]
    steps = steps or math.ceil(len(pairs) / batch)
    options = {} if peer == "stock" else {"bf16": False, "gradient_checkpointing": False}
    runs = {
        "ours": apart(train_reward_ours, setup, lora, settings, pairs, held_out, steps),
        f"trl.RewardTrainer, {peer}": apart(train_reward_trl, setup, settings, pairs, held_out, steps, options),
    }
    ours, theirs = runs.values()
    table(
        f"Reward model: {steps} steps of {batch} pairs, of {len(pairs)}; learning rate {settings.learning_rate:g}; "
        f"{len(held_out)} held-out pairs",
        list(runs),
        {
            "accuracy, 95% interval": [interval(run.wins) for run in runs.values()],
            "ours less the other's": [
                interval([a - b for a, b in zip(ours.wins, run.wins, strict=True)]) for run in runs.values()
            ],
            "tokens": [str(run.tokens) for run in runs.values()],
            "seconds": [f"{run.seconds:.1f}" for run in runs.values()],
            "tokens a second": [f"{run.tokens / run.seconds:.0f}" for run in runs.values()],
        },
    )
    return {
        "rm_accuracy_minus_trl": ours.accuracy - theirs.accuracy,
        "rm_tokens_per_second_vs_trl": (ours.tokens / ours.seconds) / (theirs.tokens / theirs.seconds),
    }


@click.command(help=__doc__)
@click.option("--only", type=click.Choice(["ppo", "memory", "reward"]), multiple=True, help="Run these parts alone.")
@click.option("--base", type=click.Path(path_type=Path), default="models/base", show_default=True)
@click.option("--init", type=click.Path(path_type=Path), default="models/m0", show_default=True)
@click.option("--reward", type=click.Path(path_type=Path), default="models/reward", show_default=True)
@click.option("--prompts", type=click.Path(path_type=Path), default="data/prepared/prompts.jsonl", show_default=True)
@click.option(
    "--train",
    "train_path",
    type=click.Path(path_type=Path),
    default="data/prepared/preferences/train.jsonl",
    show_default=True,
    help="Pairs of the reward model, prepared or as hh-rlhf transcripts.",
)
@click.option(
    "--test",
    "test_path",
    type=click.Path(path_type=Path),
    default="data/prepared/preferences/test.jsonl",
    show_default=True,
    help="Held-out pairs; their prompts are the held-out prompts of PPO.",
)
@click.option("--updates", default=4, show_default=True)
@click.option("--rollouts", default=16, show_default=True, help="Responses an update.")
@click.option("--epochs", default=4, show_default=True)
@click.option("--max-new-tokens", default=32, show_default=True)
@click.option("--learning-rate", default=2e-4, show_default=True, help="Of policy and value, on both sides.")
@click.option(
    "--lora",
    type=click.Choice(["all", "as-trained"]),
    default="all",
    show_default=True,
    help="Layers that PPO adapts, on both sides: all, or those of the adapters as they are.",
)
@click.option(
    "--ppo-peer",
    type=click.Choice(["stock", "lean"]),
    default="stock",
    show_default=True,
    help="TRL as it comes (a value model trained in full, gradient checkpointing, bfloat16 autocast), or with LoRA on "
    "the value model and without the other two, which is faster on a CPU.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    help="Of the weights that PPO runs on, ours and those of lean TRL; answers are always scored in the params' own. "
    "[default: runtime.dtype]",
)
@click.option("--eval-prompts", default=64, show_default=True, help="Held-out prompts at most.")
@click.option("--eval-samples", default=4, show_default=True, help="Answers a held-out prompt.")
@click.option("--rm-steps", type=int, help="Train on the first pairs alone, in so many steps.  [default: all]")
@click.option(
    "--rm-peer",
    type=click.Choice(["stock", "float32"]),
    default="stock",
    show_default=True,
    help="Options of trl.RewardTrainer: its defaults, or without its bfloat16 and gradient checkpointing.",
)
@click.option("--trl-venv", type=click.Path(path_type=Path), default=".venv-trl1.10", show_default=True)
def main(
    only: tuple[str, ...],
    base: Path,
    init: Path,
    reward: Path,
    prompts: Path,
    train_path: Path,
    test_path: Path,
    updates: int,
    rollouts: int,
    epochs: int,
    max_new_tokens: int,
    learning_rate: float,
    lora: str,
    ppo_peer: str,
    dtype: str | None,
    eval_prompts: int,
    eval_samples: int,
    rm_steps: int | None,
    rm_peer: str,
    trl_venv: Path,
) -> None:
    """Run the parts, print their figures, and last the ratios."""
    parts = only or ("ppo", "memory", "reward")
    params = Params.read()
    runtime = params.section("runtime", RuntimeSettings)
    start(runtime, params.seed)
    click.echo(f"command: {shlex.join(['python', '-m', 'benchmarks.rlhf', *sys.argv[1:]])}")
    versions = ", ".join(f"{name} {version(name)}" for name in ("trl", *SHARED))
    click.echo(f"ours: {versions}; {runtime.torch_device}, {runtime.num_threads} threads, {runtime.dtype}")
    ratios: dict[str, float | None] = dict.fromkeys(
        (
            "reward_gain_vs_trl",
            "seconds_per_rollout_vs_trl",
            "weights_memory_vs_four_models",
            "rm_accuracy_minus_trl",
            "rm_tokens_per_second_vs_trl",
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        setup = Setup(base, init, reward, runtime, params.seed)
        if lora == "all" and set(parts) & {"ppo", "memory"}:
            for name, adapter in {"wide-init": init, "wide-reward": reward}.items():
                apart(widen, setup, adapter, scratch / name)
            setup = replace(setup, init=scratch / "wide-init", reward=scratch / "wide-reward")
        if "ppo" in parts:
            settings = ppo_settings(
                params,
                num_updates=updates,
                rollout_batch_size=rollouts,
                mini_batch_size=rollouts,
                per_device_train_batch_size=math.gcd(rollouts, 8),
                num_ppo_epochs=epochs,
                max_new_tokens=max_new_tokens,
                learning_rate=learning_rate,
                value_learning_rate=learning_rate,
            )
            limit = settings.max_prompt_length
            asked = encode_unique(setup, [row.messages for row in read_rows(prompts, Prompt)], limit)
            unseen = encode_unique(setup, [pair.messages for pair in read_pairs(test_path)], limit)
            held_out = [ids for ids in unseen if ids not in asked][:eval_prompts]
            drawn = draw(asked, updates * rollouts, params.seed)
            python = peer_python(trl_venv)
            ratios |= compare_ppo(
                setup, settings, python, ppo_peer, dtype or runtime.dtype, drawn, held_out, eval_samples, scratch
            )
        if "memory" in parts:
            ratios |= compare_memory(setup)
        if "reward" in parts:
            ratios |= compare_reward(
                setup,
                params.section("lora", LoraSettings),
                params.section("reward_model", RewardModelSettings),
                read_pairs(train_path),
                read_pairs(test_path),
                rm_steps,
                rm_peer,
            )
    rounded = {key: None if value is None else round(value, 4) for key, value in ratios.items()}
    click.echo(f"\n{json.dumps(rounded)}")


if __name__ == "__main__":
    main()
