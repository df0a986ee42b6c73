"""PPO's gradients: equal to a reference, whatever the order and the padding, and they follow the reward."""

from typing import Any

import pytest
import torch
from torch import Tensor

from align.core.errors import InputError
from align.models.stack import AdapterStack
from align.ppo.losses import policy_loss, value_loss
from align.ppo.rollout import Batch, Rollout
from align.ppo.trainer import PPOTrainer
from tests.ppo.tiny import KEEP, MakeStack, all_parameters, critic, encoded, randomize, reward, trainer


def numpy_like_losses(
    logprobs: Tensor, old: Tensor, advantages: Tensor, values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """PPO's two losses token by token, as the paper writes them, in float64."""
    policy, value = [], []
    for row, column in mask.nonzero().tolist():
        ratio = (logprobs[row, column] - old[row, column]).exp()
        advantage = advantages[row, column]
        policy.append(-torch.min(ratio * advantage, torch.clamp(ratio, 0.8, 1.2) * advantage))
        v, v_old, target = values[row, column], old_values[row, column], returns[row, column]
        near = v_old + torch.clamp(v - v_old, -0.3, 0.3)
        value.append(0.5 * torch.max((v - target) ** 2, (near - target) ** 2))
    return torch.stack(policy).mean(), torch.stack(value).mean()


@pytest.mark.parametrize("seed", range(5))
def test_gradients_of_both_losses_equal_a_float64_reference(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(7) < torch.tensor([[7], [3], [1], [5]])
    old, advantages, old_values, returns = torch.randn(4, 4, 7, dtype=torch.float64, generator=generator)
    logprobs = old + 0.4 * torch.randn(4, 7, dtype=torch.float64, generator=generator)
    values = old_values + torch.randn(4, 7, dtype=torch.float64, generator=generator)

    exact = [x.clone().requires_grad_(True) for x in (logprobs, values)]
    losses = numpy_like_losses(exact[0], old, advantages, exact[1], old_values, returns, mask)
    expected = [torch.autograd.grad(loss, x)[0] for loss, x in zip(losses, exact, strict=True)]

    single = [x.float().requires_grad_(True) for x in (logprobs, values)]
    policy = policy_loss(single[0], old.float(), advantages.float(), mask, 0.2).sum() / mask.sum()
    value = value_loss(single[1], old_values.float(), returns.float(), mask, 0.3).sum() / mask.sum()
    found = [torch.autograd.grad(loss, x)[0] for loss, x in zip((policy, value), single, strict=True)]
    for ours, theirs in zip(found, expected, strict=True):
        assert float(theirs.abs().max()) > 0
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-6)


def gradients_of(stack: AdapterStack, ppo: PPOTrainer, rollout: Rollout, order: list[int]) -> list[Tensor]:
    ppo._mini_batch(rollout, torch.tensor(order), check=False)
    found = [p.grad.clone() for p in all_parameters(ppo) if p.grad is not None]
    for optimizer in ppo.optimizers.values():
        optimizer.zero_grad()
    return found


def test_gradients_depend_neither_on_the_order_of_the_rows_nor_on_pad_columns(make_stack: MakeStack) -> None:
    stack = make_stack()
    ppo = trainer(stack)
    randomize(critic(ppo).head)
    rollout = ppo.rollout(encoded(stack))
    expected = gradients_of(stack, ppo, rollout, list(range(8)))
    shuffled = gradients_of(stack, ppo, rollout, [5, 2, 7, 0, 3, 6, 1, 4])

    wide = {}
    for name, value in vars(rollout).items():
        if not isinstance(value, Tensor) or value.dim() == 1:
            wide[name] = value
        else:
            fill = int(stack.tokenizer.pad_token_id or 0) if name == "input_ids" else 0
            wide[name] = torch.nn.functional.pad(value, (0, 3), value=fill)
    padded = gradients_of(stack, ppo, Rollout(**wide), list(range(8)))
    assert len(expected) == len(all_parameters(ppo))
    for other in (shuffled, padded):
        for mine, theirs in zip(other, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_the_loss_of_a_mini_batch_is_a_mean_over_its_own_tokens(make_stack: MakeStack) -> None:
    stack = make_stack()
    ppo = trainer(stack, per_device_train_batch_size=1)
    rollout = ppo.rollout(encoded(stack))
    found = gradients_of(stack, ppo, rollout, [6, 1])
    part = rollout.rows(torch.tensor([6, 1]))
    logprobs = ppo._logprobs("policy", part)
    loss = policy_loss(logprobs, part.logprobs, part.advantages, part.response_mask, 0.2)
    loss[part.response_mask].mean().backward()
    for mine, parameter in zip(found, ppo.parameters["policy"], strict=False):
        assert parameter.grad is not None
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-4, atol=1e-4 * float(mine.abs().max()))


def test_a_training_forward_that_differs_from_the_rollouts_is_refused_before_the_first_step(
    make_stack: MakeStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    ppo = trainer(make_stack())
    plain = ppo._logprobs

    def shifted(name: str, batch: Batch) -> Tensor:
        return plain(name, batch) + (0.05 if torch.is_grad_enabled() else 0.0)

    monkeypatch.setattr(ppo, "_logprobs", shifted)
    before = ppo.parameters["policy"][0].detach().clone()
    with pytest.raises(InputError, match=r"the ratio is not 1 \(log-ratios of 0\.05 nats"):
        ppo.step()
    assert torch.equal(ppo.parameters["policy"][0], before)


def probability(stack: AdapterStack, prompt: list[int], token: int) -> float:
    with stack.using("policy") as model, torch.no_grad():
        return float(model(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1)[token])


def bandit(
    make_stack: MakeStack, monkeypatch: pytest.MonkeyPatch, advantage: str = "gae", num_generations: int = 1
) -> tuple[PPOTrainer, list[int], int]:
    """A one-token game on one prompt: reward 1 for a token that has a probability near 0.05 at the start, else 0."""
    stack = make_stack()
    [prompt] = encoded(stack, 1)
    with stack.using("policy") as model, torch.no_grad():
        start = model(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1)
    token = int((start - 0.05).abs().argmin())
    reward(monkeypatch, lambda rows: [float(row[-1] == token) for row in rows])
    changes: dict[str, Any] = {"rollout_batch_size": 32, "mini_batch_size": 32, "per_device_train_batch_size": 32}
    rates: dict[str, Any] = {
        "num_updates": 40,
        "learning_rate": 1e-2,
        "value_learning_rate": 1e-2,
        "max_new_tokens": 1,
        "truncated": KEEP,
        "advantage": advantage,
        "num_generations": num_generations,
    }
    settings = trainer(stack, **changes, **rates).settings
    return PPOTrainer(stack, [prompt], settings, 17, batch_size=32), prompt, token


@pytest.mark.parametrize(("advantage", "num_generations"), [("gae", 1), ("rloo", 4), ("grpo", 4)])
def test_in_a_bandit_the_rewarded_token_passes_a_probability_of_0_9(
    make_stack: MakeStack, monkeypatch: pytest.MonkeyPatch, advantage: str, num_generations: int
) -> None:
    ppo, prompt, token = bandit(make_stack, monkeypatch, advantage, num_generations)
    before = probability(ppo.stack, prompt, token)
    for _ in range(40):
        ppo.step()
    assert 0.01 < before < 0.3
    assert probability(ppo.stack, prompt, token) > 0.9


def reward_blind_step(ppo: PPOTrainer, prompts: list[list[int]]) -> None:
    """One step on -(reward - kl_coef * (log pi - log pi_ref)).mean(), where only log pi has a gradient."""
    rollout = ppo.rollout(prompts)
    ppo.updates_done += 1
    logprobs = ppo._logprobs("policy", rollout)
    kl = torch.where(rollout.response_mask, logprobs - rollout.ref_logprobs, 0.0).sum(1)
    (-(rollout.scores - ppo.settings.kl_coef * kl).mean()).backward()
    ppo.optimizers["policy"].step()
    ppo.optimizers["policy"].zero_grad()


def test_a_loss_in_which_the_reward_is_a_constant_fails_the_same_bandit(
    make_stack: MakeStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    ppo, prompt, token = bandit(make_stack, monkeypatch)
    for _ in range(40):
        reward_blind_step(ppo, [prompt] * 32)
    assert probability(ppo.stack, prompt, token) < 0.9
