"""What the tests of PPO share: settings, prompts and a trainer over a tiny stack (fixture `make_stack`)."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from align.models.stack import AdapterStack
from align.models.tokenization import encode_user
from align.ppo import trainer as ppo_trainer
from align.ppo.critic import Critic
from align.ppo.rollout import Rollout
from align.ppo.settings import PPOSettings
from align.ppo.trainer import PPOTrainer
from align.reward.scoring import score_and_record

MakeStack = Callable[..., AdapterStack]
SETTINGS = {
    "init": "m0",
    "prompts": "data/prepared/prompts.jsonl",
    "rewards": [{"model": "reward", "weight": 1.0}],
    "advantage": "gae",
    "num_generations": 1,
    "num_updates": 4,
    "rollout_batch_size": 8,
    "mini_batch_size": 8,
    "per_device_train_batch_size": 4,
    "num_ppo_epochs": 1,
    "value_layers": None,
    "learning_rate": 1e-3,
    "value_learning_rate": 1e-3,
    "warmup_steps": 0.0,
    "kl_coef": 0.05,
    "adaptive_kl_target": None,
    "adaptive_kl_horizon": 10000,
    "target_kl": None,
    "cliprange": 0.2,
    "cliprange_value": 0.2,
    "gamma": 1.0,
    "lam": 0.95,
    "max_grad_norm": 1.0,
    "gradient_checkpointing": False,
    "truncated": {"mode": "penalty", "value": 1.0, "soft_punish_cache": None},
    "temperature": 1.0,
    "max_new_tokens": 10,
    "max_prompt_length": 128,
}
KEEP = {"mode": "keep", "value": None, "soft_punish_cache": None}
TEXTS = ("Hi", "What is rust?", "Tell me a story about 12 cats.", "Why?", "How long can rice sit", "Go")


def trainer(stack: AdapterStack, seed: int = 17, **changes: Any) -> PPOTrainer:
    prompts = [encode_user(stack.tokenizer, text) for text in TEXTS]
    return PPOTrainer(stack, prompts, PPOSettings.model_validate(SETTINGS | changes), seed, batch_size=8)


def critic(ppo: PPOTrainer) -> Critic:
    """Return the critic of a trainer with `gae`."""
    assert ppo.critic is not None
    return ppo.critic


def values_of(rollout: Rollout) -> Tensor:
    assert rollout.values is not None
    return rollout.values


def returns_of(rollout: Rollout) -> Tensor:
    assert rollout.returns is not None
    return rollout.returns


def all_parameters(ppo: PPOTrainer) -> list[nn.Parameter]:
    return [parameter for group in ppo.parameters.values() for parameter in group]


def encoded(stack: AdapterStack, count: int = 8) -> list[list[int]]:
    return [encode_user(stack.tokenizer, TEXTS[i % len(TEXTS)]) for i in range(count)]


def real_rows(rollout: Rollout) -> list[tuple[list[int], int]]:
    """Return each row's ids without padding, and how many of them are the response."""
    return [
        (ids[mask].tolist(), int(response.sum()))
        for ids, mask, response in zip(rollout.input_ids, rollout.attention_mask, rollout.response_mask, strict=True)
    ]


def reward(monkeypatch: pytest.MonkeyPatch, score: Callable[[Sequence[list[int]]], list[float]]) -> None:
    """Let `score` give the scores of the responses; the rest of the scoring stays as it is."""

    def scored(stack: AdapterStack, name: str, rows: Sequence[list[int]], *args: Any, **kwargs: Any) -> Any:
        return score(rows), score_and_record(stack, name, rows, *args, **kwargs)[1]

    monkeypatch.setattr(ppo_trainer, "score_and_record", scored)


def randomize(parameter: Tensor) -> None:
    with torch.no_grad():
        parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))


def snapshot(stack: AdapterStack) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in stack.causal_lm.named_parameters()}
