"""Rewards and advantages against slow, obvious references."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from align.ppo.advantages import gae, last_token_index, token_rewards, whiten

exact = settings(derandomize=True, deadline=None, max_examples=50)
unit = st.floats(0, 1)


@dataclass(frozen=True)
class Case:
    lengths: list[int]
    mask: Tensor
    rewards: Tensor
    values: Tensor


@st.composite
def cases(draw: st.DrawFn) -> Case:
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    width = max(lengths) + draw(st.integers(0, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    mask = torch.arange(width) < torch.tensor(lengths).unsqueeze(1)
    rewards, values = torch.randn(2, len(lengths), width, dtype=torch.float64, generator=generator)
    return Case(lengths, mask, rewards, values)


def discounted_sum_of_td_errors(case: Case, gamma: float, lam: float) -> Tensor:
    advantages = torch.zeros_like(case.rewards)
    for row, length in enumerate(case.lengths):
        rewards, values = case.rewards[row, :length].tolist(), [*case.values[row, :length].tolist(), 0.0]
        errors = [rewards[t] + gamma * values[t + 1] - values[t] for t in range(length)]
        for t in range(length):
            advantages[row, t] = sum((gamma * lam) ** (later - t) * errors[later] for later in range(t, length))
    return advantages


@exact
@given(cases(), unit, unit)
def test_gae_is_the_discounted_sum_of_td_errors(case: Case, gamma: float, lam: float) -> None:
    advantages, _ = gae(case.rewards, case.values, case.mask, gamma, lam)
    torch.testing.assert_close(advantages, discounted_sum_of_td_errors(case, gamma, lam), rtol=1e-9, atol=1e-12)


@exact
@given(cases())
def test_without_discount_an_advantage_is_all_later_reward_minus_the_value(case: Case) -> None:
    advantages, _ = gae(case.rewards, case.values, case.mask, 1.0, 1.0)
    for row, length in enumerate(case.lengths):
        for t in range(length):
            expected = sum(case.rewards[row, t:length].tolist()) - float(case.values[row, t])
            assert float(advantages[row, t]) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_with_lambda_0_an_advantage_is_the_td_error() -> None:
    rewards, values = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.5, 4.0, 8.0]])
    advantages, _ = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), 0.5, 0.0)
    torch.testing.assert_close(advantages, torch.tensor([[1 + 0.5 * 4 - 0.5, 2 + 0.5 * 8 - 4, 3 + 0 - 8]]))


@exact
@given(cases(), unit, unit, st.sampled_from([math.nan, math.inf, -math.inf, 1e30]))
def test_what_stands_after_the_last_real_token_changes_nothing(
    case: Case, gamma: float, lam: float, garbage: float
) -> None:
    dirty = replace(
        case,
        rewards=case.rewards.masked_fill(~case.mask, garbage),
        values=case.values.masked_fill(~case.mask, garbage),
    )
    for clean, found in zip(
        gae(case.rewards, case.values, case.mask, gamma, lam),
        gae(dirty.rewards, dirty.values, dirty.mask, gamma, lam),
        strict=True,
    ):
        assert torch.equal(clean, found)
        assert not found[~case.mask].any()


@exact
@given(cases(), unit, unit)
def test_returns_are_advantages_plus_values(case: Case, gamma: float, lam: float) -> None:
    advantages, returns = gae(case.rewards, case.values, case.mask, gamma, lam)
    torch.testing.assert_close((returns - advantages)[case.mask], case.values[case.mask], rtol=1e-9, atol=1e-12)


@exact
@given(cases(), st.floats(0, 2), st.integers(0, 10**6))
def test_a_rows_rewards_add_up_to_the_score_minus_its_kl_penalty(case: Case, kl_coef: float, seed: int) -> None:
    logprobs, ref_logprobs = case.rewards, case.values
    scores = torch.randn(len(case.lengths), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    rewards = token_rewards(logprobs, ref_logprobs, scores, case.mask, kl_coef)
    for row, length in enumerate(case.lengths):
        log_ratio = sum((logprobs[row, :length] - ref_logprobs[row, :length]).tolist())
        assert float(rewards[row].sum()) == pytest.approx(-kl_coef * log_ratio + float(scores[row]), abs=1e-9)


def test_the_score_lands_once_on_the_eos_or_else_on_the_last_token() -> None:
    # Row 0: [a, EOS, pad, pad]; row 1 ends without EOS at the last column; row 2 is an EOS alone.
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]], dtype=torch.bool)
    zeros = torch.zeros(3, 4)
    rewards = token_rewards(zeros, zeros, torch.tensor([5.0, -7.0, 11.0]), mask, 0.1)
    assert rewards.tolist() == [[0, 5, 0, 0], [0, 0, 0, -7], [11, 0, 0, 0]]
    assert last_token_index(mask).tolist() == [1, 3, 0]


def test_a_token_that_the_policy_likes_more_than_the_reference_is_penalized() -> None:
    logprobs, ref_logprobs = torch.tensor([[-1.0, -2.0, -3.0]]), torch.tensor([[-1.5, -1.0, -3.0]])
    rewards = token_rewards(logprobs, ref_logprobs, torch.zeros(1), torch.ones(1, 3, dtype=torch.bool), 0.2)
    torch.testing.assert_close(rewards, torch.tensor([[-0.1, 0.2, 0.0]]))


def test_logprobs_at_pads_never_enter_a_reward() -> None:
    mask = torch.tensor([[True, False]])
    rewards = token_rewards(
        torch.tensor([[-1.0, -math.inf]]), torch.tensor([[-1.0, math.nan]]), torch.ones(1), mask, 1.0
    )
    assert rewards.tolist() == [[1, 0]]


@exact
@given(cases().filter(lambda case: sum(case.lengths) > 1))
def test_whitened_values_have_mean_0_and_deviation_1_over_real_tokens(case: Case) -> None:
    whitened = whiten(case.rewards, case.mask)
    assert float(whitened[case.mask].mean()) == pytest.approx(0, abs=1e-9)
    assert float(whitened[case.mask].std(correction=0)) == pytest.approx(1, rel=1e-4)
    assert not whitened[~case.mask].any()


@exact
@given(cases(), st.integers(1, 5))
def test_more_pad_columns_do_not_change_whitened_values(case: Case, columns: int) -> None:
    garbage = torch.full((len(case.lengths), columns), math.nan, dtype=torch.float64)
    wide = whiten(
        torch.cat([case.rewards, garbage], 1), torch.cat([case.mask, torch.zeros_like(garbage, dtype=torch.bool)], 1)
    )
    assert torch.equal(wide[:, : case.mask.shape[1]], whiten(case.rewards, case.mask))


def test_equal_advantages_whiten_to_0_instead_of_nan() -> None:
    assert whiten(torch.full((2, 3), 4.0), torch.ones(2, 3, dtype=torch.bool)).tolist() == [[0] * 3] * 2
