"""PPO on a tiny model: what each update computes, what it changes, and that it learns."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from align.core.errors import InputError
from align.core.params import Params
from align.models.stack import AdapterStack
from align.ppo.advantages import gae, token_rewards, whiten
from align.ppo.schedules import rate_factor
from align.ppo.settings import PPOSettings
from align.ppo.trainer import PPOTrainer
from align.reward.scoring import reward_scores
from tests.committed import PARAMS_YAML
from tests.factories import embeddings
from tests.ppo.tiny import (
    KEEP,
    SETTINGS,
    TEXTS,
    MakeStack,
    all_parameters,
    critic,
    encoded,
    randomize,
    real_rows,
    returns_of,
    reward,
    snapshot,
    trainer,
    values_of,
)


def penalty(value: float) -> dict[str, Any]:
    return {"mode": "penalty", "value": value, "soft_punish_cache": None}


def test_over_a_base_in_bfloat16_the_checks_hold_and_adapters_heads_and_results_stay_float32(
    make_stack: MakeStack,
) -> None:
    stack = make_stack(dtype="bfloat16")
    ppo = trainer(stack)
    before = snapshot(stack)
    row = ppo.step()
    assert abs(row["kl"]) < 0.1
    assert {parameter.dtype for parameter in all_parameters(ppo)} == {torch.float32}
    assert any(not torch.equal(old, new) for old, new in zip(before.values(), snapshot(stack).values(), strict=True))
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    alone = stack.heads["reward"](hidden)
    with stack.using("reward"):
        assert torch.equal(stack.heads["reward"](hidden), alone)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_before_the_first_update_the_kl_is_0_and_the_ratio_is_1(make_stack: MakeStack, temperature: float) -> None:
    row = trainer(make_stack(), temperature=temperature).step()
    assert row["kl"] == pytest.approx(0, abs=1e-5)
    assert row["ratio"] == pytest.approx(1, abs=1e-5)
    assert row["clip_fraction"] == 0
    assert row["approx_kl"] == pytest.approx(0, abs=1e-6)


def test_after_an_update_the_kl_is_not_0(make_stack: MakeStack) -> None:
    ppo = trainer(make_stack())
    ppo.step()
    assert abs(ppo.step()["kl"]) > 1e-4


def test_a_policy_that_is_not_the_reference_is_refused(
    make_stack: MakeStack, make_adapter: Callable[..., Path]
) -> None:
    ppo = trainer(make_stack(reference=make_adapter("other", 3)))
    with pytest.raises(InputError, match="KL to the reference is not 0"):
        ppo.step()


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_logprobs_are_those_of_the_unpadded_row_at_the_temperature_of_sampling(
    make_stack: MakeStack, temperature: float
) -> None:
    stack = make_stack()
    ppo = trainer(stack, temperature=temperature)
    rollout = ppo.rollout(encoded(stack))
    for i, (ids, length) in enumerate(real_rows(rollout)):
        with stack.using("policy") as model, torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -length - 1 : -1].double()
        expected = (logits / temperature).log_softmax(-1).gather(1, torch.tensor(ids[-length:]).unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(rollout.logprobs[i, :length].double(), expected, rtol=1e-4, atol=1e-5)


def test_at_first_every_value_is_the_mean_reward_so_that_no_place_in_a_reply_is_favoured(make_stack: MakeStack) -> None:
    stack = make_stack()
    rollout = trainer(stack, truncated=penalty(2.0)).rollout(encoded(stack))
    reward = (rollout.scores - 2.0 * (~rollout.ended).float()).mean()
    assert 0 < int(rollout.ended.sum()) < len(rollout.ended)
    torch.testing.assert_close(values_of(rollout), reward.expand_as(values_of(rollout)))


def test_values_are_the_head_on_the_state_before_each_token(make_stack: MakeStack) -> None:
    stack = make_stack()
    ppo = trainer(stack)
    ppo.step()
    randomize(critic(ppo).head)
    rollout = ppo.rollout(encoded(stack))
    for i, (ids, length) in enumerate(real_rows(rollout)):
        with stack.using("value") as model, torch.no_grad():
            hidden = model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0, -length - 1 : -1]
        expected = (hidden @ critic(ppo).head.T).squeeze(-1).detach() + critic(ppo).bias.detach()
        torch.testing.assert_close(values_of(rollout)[i, :length], expected, rtol=1e-4, atol=1e-4)


def test_scores_are_the_reward_models_on_the_very_tokens_of_the_rollout(make_stack: MakeStack) -> None:
    stack = make_stack()
    rollout = trainer(stack).rollout(encoded(stack))
    expected = [reward_scores(stack, "reward", [ids], batch_size=1)[0] for ids, _ in real_rows(rollout)]
    assert rollout.scores.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_advantages_are_whitened_gae_of_kl_penalty_and_penalized_score(make_stack: MakeStack) -> None:
    stack = make_stack()
    ppo = trainer(stack, kl_coef=0.5, gamma=0.9, lam=0.8, truncated=penalty(2.0))
    ppo.step()
    rollout = ppo.rollout(encoded(stack))
    mask = rollout.response_mask
    penalized = rollout.scores - 2.0 * (~rollout.ended).float()
    rewards = token_rewards(rollout.logprobs, rollout.ref_logprobs, penalized, mask, 0.5)
    advantages, returns = gae(rewards, values_of(rollout), mask, 0.9, 0.8)
    torch.testing.assert_close(returns_of(rollout), returns)
    torch.testing.assert_close(rollout.advantages, whiten(advantages, mask))


def test_an_unfinished_response_loses_the_penalty_and_a_finished_one_nothing(make_stack: MakeStack) -> None:
    stack = make_stack()
    free = trainer(stack, lam=1.0, truncated=KEEP).rollout(encoded(stack, 16))
    dear = trainer(stack, lam=1.0, truncated=penalty(5.0)).rollout(encoded(stack, 16))
    assert torch.equal(free.input_ids, dear.input_ids)
    assert set(free.ended.tolist()) == {True, False}
    last = torch.tensor([ids[-1] for ids, _ in real_rows(free)])
    assert torch.equal(free.ended, last == stack.tokenizer.eos_token_id)
    loss = (returns_of(free) - returns_of(dear))[free.response_mask]
    expected = torch.where(free.ended, 0.0, 5.0).unsqueeze(1).expand_as(free.response_mask)[free.response_mask]
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)


def gradients(stack: AdapterStack, micro_batch_size: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return the gradients of the only optimizer step of an update, and the parameters after it."""
    ppo = trainer(stack, per_device_train_batch_size=micro_batch_size, max_grad_norm=1e9)
    randomize(critic(ppo).head)
    seen: list[Tensor] = []

    def record(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        seen.extend(p.grad.clone() for group in optimizer.param_groups for p in group["params"])

    for optimizer in ppo.optimizers.values():
        optimizer.register_step_pre_hook(record)
    ppo.step()
    return seen, [p.detach().clone() for p in all_parameters(ppo)]


def test_gradients_and_updates_do_not_depend_on_the_micro_batch_size(make_stack: MakeStack) -> None:
    one, four = gradients(make_stack(), 1), gradients(make_stack(), 4)
    assert len(one[0]) == len(one[1]) == len(four[0])
    for mine, theirs in zip(one[0], four[0], strict=True):
        assert float(theirs.norm()) > 0
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))
    for mine, theirs in zip(one[1], four[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_step_changes_policy_and_value_and_nothing_else(make_stack: MakeStack) -> None:
    stack = make_stack()
    before, heads = snapshot(stack), {name: head.weight.clone() for name, head in stack.heads.items()}
    ppo = trainer(stack)
    randomize(critic(ppo).head)  # through a head of zeros no gradient reaches the adapter below it
    head = critic(ppo).head.detach().clone()
    ppo.step()
    after = snapshot(stack)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {key for key in before if ".policy." in key or ".value." in key}
    assert any(".reference." in key for key in before)
    assert any(".reward." in key for key in before)
    assert not torch.equal(critic(ppo).head, head)
    assert all(torch.equal(stack.heads[name].weight, heads[name]) for name in ("reward", "value"))


def test_equal_seeds_give_bit_identical_parameters_and_other_seeds_others(make_stack: MakeStack) -> None:
    results = []
    for seed in (17, 17, 18):
        stack = make_stack()
        ppo = trainer(stack, seed, mini_batch_size=4, num_ppo_epochs=2)
        history = [ppo.step(), ppo.step()]
        results.append((history, snapshot(stack), critic(ppo).head.detach().clone()))
    (history, parameters, head), (same_history, same_parameters, same_head), (_, others, _) = results
    assert history == same_history
    assert torch.equal(head, same_head)
    assert all(torch.equal(value, same_parameters[key]) for key, value in parameters.items())
    assert not all(torch.equal(value, others[key]) for key, value in parameters.items())


class Recording(PPOTrainer):
    """Keeps the prompts in the order in which they are drawn."""

    seen: list[tuple[int, ...]]

    def _next_prompts(self) -> list[int]:
        numbers = super()._next_prompts()
        self.seen = [*getattr(self, "seen", []), *(tuple(self._prompts[i]) for i in numbers)]
        return numbers


def test_every_prompt_is_used_once_in_each_full_pass(make_stack: MakeStack) -> None:
    stack = make_stack()
    changes = {"rollout_batch_size": 4, "mini_batch_size": 4, "max_new_tokens": 2}
    settings = PPOSettings.model_validate(SETTINGS | changes)
    ppo = Recording(stack, encoded(stack, len(TEXTS)), settings, 17, batch_size=8)
    for _ in range(3):
        ppo.step()
    every = sorted(map(tuple, encoded(stack, len(TEXTS))))
    assert sorted(ppo.seen[:6]) == sorted(ppo.seen[6:]) == every
    assert ppo.seen[:6] != ppo.seen[6:]


def test_the_learning_rates_fall_in_a_straight_line_to_0_after_the_last_update(make_stack: MakeStack) -> None:
    ppo = trainer(make_stack(), max_new_tokens=2)
    assert [ppo.step()["learning_rate"] for _ in range(4)] == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])
    assert ppo.optimizers["value"].param_groups[0]["lr"] == pytest.approx(2.5e-4)


@pytest.mark.parametrize("warmup_steps", [0.5, 4])
def test_the_learning_rates_rise_over_the_warmup_and_change_with_every_optimizer_step(
    make_stack: MakeStack, warmup_steps: float
) -> None:
    ppo = trainer(make_stack(), max_new_tokens=2, mini_batch_size=4, warmup_steps=warmup_steps)  # two steps an update
    assert [ppo.step()["learning_rate"] for _ in range(4)] == pytest.approx([4e-4, 8e-4, 7.5e-4, 2.5e-4])
    factors = [rate_factor(step, 8, warmup_steps) for step in range(8)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 0.75, 0.5, 0.25])


def test_a_warmup_longer_than_the_run_never_divides_by_0() -> None:
    assert [rate_factor(step, 2, 5) for step in range(2)] == pytest.approx([1 / 6, 2 / 6])
    assert [rate_factor(step, 1, 0.0) for step in range(1)] == [1]


@pytest.mark.parametrize(
    "sizes",
    [
        {"rollout_batch_size": 32, "mini_batch_size": 12, "per_device_train_batch_size": 4},
        {"rollout_batch_size": 32, "mini_batch_size": 16, "per_device_train_batch_size": 5},
    ],
)
def test_sizes_that_do_not_divide_are_an_error_of_the_params(sizes: dict[str, int]) -> None:
    params = Params.read(PARAMS_YAML)
    params.values["ppo"] |= sizes
    with pytest.raises(InputError, match="ppo: should be sizes where rollout_batch_size / mini_batch_size"):
        params.section("ppo", PPOSettings)


def counts_while_training(
    stack: AdapterStack, monkeypatch: pytest.MonkeyPatch, letter: str, sign: float
) -> list[float]:
    """Train with a reward of `sign` for each `letter` in a response of 8 tokens; return its mean count an update."""
    [token] = stack.tokenizer(letter, add_special_tokens=False)["input_ids"]
    with torch.no_grad():  # frequent enough at the start to be found
        embeddings(stack.causal_lm)[token] *= 5
    counts: list[float] = []

    def count(rows: Sequence[list[int]]) -> list[float]:
        found = [row[-8:].count(token) for row in rows]
        counts.append(sum(found) / len(found))
        return [sign * count for count in found]

    reward(monkeypatch, count)
    ppo = trainer(
        stack,
        num_updates=12,
        rollout_batch_size=32,
        mini_batch_size=16,
        per_device_train_batch_size=16,
        max_new_tokens=8,
        learning_rate=1e-2,
        value_learning_rate=1e-2,
        kl_coef=0.0,
        truncated=KEEP,
    )
    for _ in range(12):
        ppo.step()
    return counts


@pytest.mark.parametrize("letter", ["e", "a"])
def test_a_rewarded_token_takes_over_and_a_punished_one_disappears(
    make_stack: MakeStack, monkeypatch: pytest.MonkeyPatch, letter: str
) -> None:
    rewarded = counts_while_training(make_stack(), monkeypatch, letter, +1.0)
    punished = counts_while_training(make_stack(), monkeypatch, letter, -1.0)
    assert rewarded[0] == punished[0] < 2
    assert min(rewarded[-3:]) > 6
    assert max(punished[-3:]) < 0.5
