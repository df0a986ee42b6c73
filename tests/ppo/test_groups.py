"""Advantages without a critic: a response against the others to its prompt (`rloo`, `grpo`)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from align.core.errors import InputError
from align.core.params import Params
from align.models.stack import AdapterStack
from align.ppo.advantages import grpo, rloo, sequence_rewards, token_rewards
from align.ppo.losses import kl_loss, policy_loss
from align.ppo.settings import PPOSettings
from align.run.runtime import RuntimeSettings
from tests.committed import PARAMS_YAML
from tests.ppo.tiny import MakeStack, all_parameters, encoded, real_rows, snapshot, trainer

exact = settings(derandomize=True, deadline=None, max_examples=50)
GROUPED: dict[str, Any] = {"num_generations": 4}


@st.composite
def groups(draw: st.DrawFn) -> tuple[Tensor, int]:
    """Rewards of 1 to 4 prompts, and the number of responses to each."""
    count = draw(st.integers(2, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    prompts = draw(st.integers(1, 4))
    return 3 * torch.randn(prompts * count, dtype=torch.float64, generator=generator), count


def test_an_rloo_advantage_is_the_reward_less_the_mean_of_the_prompts_other_rewards() -> None:
    found = rloo(torch.tensor([1.0, 2.0, 6.0, 0.0, -3.0, 0.0]), 3)
    assert found.tolist() == pytest.approx([1 - 4, 2 - 3.5, 6 - 1.5, 1.5, -3, 1.5])


def test_a_grpo_advantage_is_the_reward_in_deviations_from_its_prompts_mean() -> None:
    found = grpo(torch.tensor([1.0, 3.0, -2.0, -8.0]), 2)
    assert found.tolist() == pytest.approx([-1, 1, 1, -1], abs=1e-3)
    assert grpo(torch.tensor([0.0, 0.0, 0.0, 4.0]), 4).tolist() == pytest.approx([-(3**-0.5)] * 3 + [3**0.5], abs=1e-3)


@exact
@given(groups(), st.floats(-5, 5))
def test_rloo_advantages_of_a_prompt_add_up_to_0_and_do_not_see_a_constant_in_all_rewards(
    case: tuple[Tensor, int], constant: float
) -> None:
    rewards, count = case
    found = rloo(rewards, count)
    torch.testing.assert_close(found.view(-1, count).sum(1), torch.zeros(len(rewards) // count).double())
    torch.testing.assert_close(rloo(rewards + constant, count), found)


@exact
@given(groups(), st.floats(-5, 5), st.floats(0.5, 20))
def test_grpo_advantages_of_a_prompt_have_mean_0_and_deviation_1_at_any_shift_and_scale(
    case: tuple[Tensor, int], constant: float, scale: float
) -> None:
    rewards, count = case
    spread = rewards + torch.arange(len(rewards)) % count  # no group of almost equal rewards
    found = grpo(spread, count).view(-1, count)
    torch.testing.assert_close(found.mean(1), torch.zeros(len(found)).double())
    assert torch.all(spread.view(-1, count).std(1, correction=0) > 0.02)
    torch.testing.assert_close(found.std(1, correction=0), torch.ones(len(found)).double(), rtol=0, atol=0.01)
    torch.testing.assert_close(grpo(scale * spread + constant, count).view(-1, count), found, rtol=0, atol=0.01)


@pytest.mark.parametrize("advantages", [rloo, grpo])
def test_equal_rewards_teach_nothing(advantages: Callable[[Tensor, int], Tensor]) -> None:
    assert advantages(torch.full((6,), -3.0), 3).tolist() == [0.0] * 6


def test_the_reward_of_a_response_is_the_sum_of_its_tokens_rewards() -> None:
    mask = torch.tensor([[True, True, True], [True, False, False]])
    logprobs, reference = torch.tensor([[-1.0, -2.0, -0.5], [-1.0, 9.0, 9.0]]), torch.full((2, 3), -1.5)
    found = sequence_rewards(logprobs, reference, torch.tensor([2.0, -3.0]), mask, 0.5)
    assert found.tolist() == pytest.approx([2 - 0.5 * (0.5 - 0.5 + 1.0), -3 - 0.5 * 0.5])
    per_token = token_rewards(logprobs, reference, torch.tensor([2.0, -3.0]), mask, 0.5)
    torch.testing.assert_close(found, per_token.sum(1))


def test_the_kl_loss_is_k3_by_hand_with_a_gradient_towards_the_reference_and_finite_at_impossible_tokens() -> None:
    reference = torch.tensor([[-1.0, -1.0, -1.0, -1e9]])
    logprobs = torch.tensor([[-1.0, -3.0, -0.5, -1.0]], requires_grad=True)
    mask = torch.tensor([[True, True, True, True]])
    loss = kl_loss(logprobs, reference, mask)
    assert loss[0, :3].tolist() == pytest.approx([0.0, 7.38906 - 1 - 2, 0.60653 - 1 + 0.5], abs=1e-4)
    loss.sum().backward()
    assert logprobs.grad is not None
    assert [float(x) for x in logprobs.grad[0, :3].sign()] == [0, -1, 1]
    assert torch.isfinite(loss).all()
    assert kl_loss(logprobs, reference, ~mask).tolist() == [[0.0] * 4]


@pytest.mark.parametrize("advantage", ["rloo", "grpo"])
def test_each_prompt_gets_as_many_responses_next_to_each_other_and_their_advantages_cancel(
    make_stack: MakeStack, advantage: str
) -> None:
    stack = make_stack()
    ppo = trainer(stack, advantage=advantage, **GROUPED)
    ppo.step()
    prompts = encoded(stack, 2)
    rollout = ppo.rollout(prompts)
    rows = [(tuple(ids[:-count]), tuple(ids[-count:])) for ids, count in real_rows(rollout)]
    assert [prompt for prompt, _ in rows] == [tuple(prompt) for prompt in prompts for _ in range(4)]
    assert len(set(rows)) > 4
    real, first = rollout.response_mask, rollout.advantages[:, :1]
    assert torch.equal(rollout.advantages, torch.where(real, first, 0.0))  # one number for all tokens of a response
    torch.testing.assert_close(first.view(2, 4).sum(1), torch.zeros(2), rtol=0, atol=1e-5)
    assert float(first.abs().max()) > 0.01


def test_rloo_has_the_kl_penalty_in_the_reward_and_grpo_has_it_in_the_loss(make_stack: MakeStack) -> None:
    stack = make_stack()
    ppo = trainer(stack, advantage="rloo", kl_coef=0.5, learning_rate=1e-2, **GROUPED)
    ppo.step()
    rollout = ppo.rollout(encoded(stack, 2))
    mask = rollout.response_mask
    penalized = rollout.scores - 1.0 * (~rollout.ended).float()
    kl = torch.where(mask, rollout.logprobs - rollout.ref_logprobs, 0.0).sum(1)
    assert float(kl.abs().max()) > 0.01
    torch.testing.assert_close(rollout.advantages[:, 0], rloo(penalized - 0.5 * kl, 4), rtol=1e-4, atol=1e-5)

    stack = make_stack()
    ppo = trainer(stack, advantage="grpo", kl_coef=0.5, learning_rate=1e-2, **GROUPED)
    ppo.step()
    rollout = ppo.rollout(encoded(stack, 2))
    penalized = rollout.scores - 1.0 * (~rollout.ended).float()
    torch.testing.assert_close(rollout.advantages[:, 0], grpo(penalized, 4), rtol=1e-4, atol=1e-5)
    ppo._mini_batch(rollout, torch.arange(8), check=False)
    found = [parameter.grad.clone() for parameter in all_parameters(ppo) if parameter.grad is not None]
    ppo.optimizers["policy"].zero_grad()
    mask, logprobs = rollout.response_mask, ppo._logprobs("policy", rollout)
    loss = policy_loss(logprobs, rollout.logprobs, rollout.advantages, mask, 0.2)
    loss = loss + 0.5 * kl_loss(logprobs, rollout.ref_logprobs, mask)
    (loss.sum() / mask.sum()).backward()
    for mine, parameter in zip(found, all_parameters(ppo), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-4, atol=1e-4 * float(mine.abs().max()))


@pytest.mark.parametrize("advantage", ["rloo", "grpo"])
def test_without_a_critic_a_step_needs_no_value_adapter_and_changes_the_policy_alone(
    make_stack: MakeStack, runtime: RuntimeSettings, tiny_base: Path, tmp_path: Path, advantage: str
) -> None:
    make_stack()  # writes the adapters
    stack = AdapterStack(tiny_base, runtime)
    for name, folder in {"policy": "policy", "reference": "policy", "reward": "reward"}.items():
        stack.add(name, tmp_path / folder)
    ppo = trainer(stack, advantage=advantage, **GROUPED)
    before = snapshot(stack)
    rows = [ppo.step(), ppo.step()]
    changed = {key for key, value in snapshot(stack).items() if not torch.equal(value, before[key])}
    assert changed == {key for key in before if ".policy." in key}
    assert ppo.critic is None
    assert list(ppo.optimizers) == ["policy"]
    assert rows[0]["ratio"] == pytest.approx(1, abs=1e-5)
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert not {"mean_value", "explained_variance", "value_loss"} & rows[0].keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout_batch_size": 32, "num_generations": 5}, "a rollout_batch_size that num_generations divides"),
        ({"advantage": "rloo", "num_generations": 1}, "num_generations 2 or more: rloo compares"),
        ({"advantage": "grpo", "num_generations": 1}, "num_generations 2 or more: grpo compares"),
        ({"advantage": "reinforce"}, "ppo.advantage"),
    ],
)
def test_groups_that_do_not_fit_are_an_error_of_the_params(changes: dict[str, Any], message: str) -> None:
    params = Params.read(PARAMS_YAML)
    params.values["ppo"] |= changes
    with pytest.raises(InputError, match=message):
        params.section("ppo", PPOSettings)
