"""PPO's losses: which tokens get a gradient, in which direction, and that masked ones never do."""

import math

import pytest
import torch
from torch import Tensor

from align.ppo.advantages import gae, token_rewards, whiten
from align.ppo.losses import policy_loss, token_entropies, token_logprobs, value_loss

ONE = torch.ones(1, 1, dtype=torch.bool)


def gradient_at_ratio(ratio: float, advantage: float) -> float:
    logprobs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    policy_loss(logprobs, torch.zeros(1, 1), torch.tensor([[advantage]]), ONE, 0.2).sum().backward()
    assert logprobs.grad is not None
    return float(logprobs.grad)


@pytest.mark.parametrize(("ratio", "advantage"), [(1.3, 2.0), (0.7, -2.0)])
def test_a_ratio_that_left_the_range_the_right_way_gets_no_gradient(ratio: float, advantage: float) -> None:
    assert gradient_at_ratio(ratio, advantage) == 0


@pytest.mark.parametrize(("ratio", "advantage"), [(1.3, -2.0), (0.7, 2.0), (1.1, 2.0), (0.9, -2.0)])
def test_any_other_ratio_keeps_its_gradient(ratio: float, advantage: float) -> None:
    assert gradient_at_ratio(ratio, advantage) == pytest.approx(-advantage * ratio, rel=1e-5)


def test_the_policy_loss_is_the_clipped_surrogate() -> None:
    logprobs = torch.tensor([[1.5, 0.5, 1.0, 0.1]]).log()
    advantages = torch.tensor([[2.0, -2.0, 3.0, 9.0]])
    mask = torch.tensor([[True, True, True, False]])
    loss = policy_loss(logprobs, torch.zeros(1, 4), advantages, mask, 0.2)
    torch.testing.assert_close(loss, torch.tensor([[-2 * 1.2, 2 * 0.8, -3.0, 0.0]]))


def policy_gradient(scores: Tensor) -> Tensor:
    """Return the gradient of one update on fixed responses that get these scores."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(4, 5, 7, generator=generator, requires_grad=True)
    tokens = torch.randint(7, (4, 5), generator=generator)
    mask = torch.arange(5) < torch.tensor([[5], [2], [3], [4]])
    logprobs = token_logprobs(logits, tokens, 1.0)
    old = logprobs.detach()
    advantages, _ = gae(token_rewards(old, old, scores, mask, 0.1), torch.zeros(4, 5), mask, 1.0, 1.0)
    policy_loss(logprobs, old, whiten(advantages, mask), mask, 0.2).sum().backward()
    assert logits.grad is not None
    return logits.grad


def test_opposite_rewards_give_opposite_gradients() -> None:
    scores = torch.tensor([1.0, -2.0, 0.5, 3.0])
    gradient = policy_gradient(scores)
    assert float(gradient.abs().max()) > 0.1
    torch.testing.assert_close(policy_gradient(-scores), -gradient)


def test_a_step_makes_the_better_response_more_likely_and_the_worse_one_less() -> None:
    logits, tokens = torch.zeros(2, 1, 3, requires_grad=True), torch.tensor([[0], [1]])
    before = token_logprobs(logits, tokens, 1.0)
    advantages, mask = torch.tensor([[1.0], [-1.0]]), torch.ones(2, 1, dtype=torch.bool)
    policy_loss(before, before.detach(), advantages, mask, 0.2).sum().backward()
    assert logits.grad is not None
    after = token_logprobs(logits.detach() - 0.1 * logits.grad, tokens, 1.0)
    assert (after - before.detach()).sign().tolist() == [[1], [-1]]


def test_a_masked_token_cannot_spoil_loss_or_gradient() -> None:
    logprobs = torch.tensor([[-1.0, -math.inf]], requires_grad=True)
    mask = torch.tensor([[True, False]])
    loss = policy_loss(logprobs, torch.tensor([[-1.1, -math.inf]]), torch.tensor([[1.0, math.nan]]), mask, 0.2)
    loss.sum().backward()
    assert logprobs.grad is not None
    assert loss.tolist()[0] == [pytest.approx(-math.exp(0.1)), 0]
    assert logprobs.grad.tolist()[0] == [pytest.approx(-math.exp(0.1)), 0]


def test_a_masked_value_has_no_loss_and_no_gradient() -> None:
    values = torch.tensor([[1.0, 50.0]], requires_grad=True)
    loss = value_loss(values, torch.zeros(1, 2), torch.tensor([[3.0, 0.0]]), torch.tensor([[True, False]]), 10.0)
    loss.sum().backward()
    assert values.grad is not None
    assert loss.tolist() == [[2.0, 0.0]]
    assert values.grad.tolist() == [[-2.0, 0.0]]


@pytest.mark.parametrize(
    ("value", "target", "loss", "gradient"),
    [
        (0.1, 1.0, 0.5 * 0.9**2, -0.9),  # within the range: plain squared error
        (0.9, 1.0, 0.5 * 0.8**2, 0.0),  # beyond it towards the target: the clip binds
        (0.9, -1.0, 0.5 * 1.9**2, 1.9),  # beyond it away from the target: the way back stays open
        (-0.9, -1.0, 0.5 * 0.8**2, 0.0),
    ],
)
def test_a_value_moves_at_most_by_the_clip_range_towards_its_target(
    value: float, target: float, loss: float, gradient: float
) -> None:
    values = torch.tensor([[value]], requires_grad=True)
    found = value_loss(values, torch.zeros(1, 1), torch.tensor([[target]]), ONE, 0.2)
    found.sum().backward()
    assert values.grad is not None
    assert float(found.detach()) == pytest.approx(loss, rel=1e-5)
    assert float(values.grad) == pytest.approx(gradient, rel=1e-5)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logprobs_and_entropy_are_of_the_softmax_at_the_temperature(temperature: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (5 * torch.randn(3, 4, 11, generator=generator)).to(dtype)
    tokens = torch.randint(11, (3, 4), generator=generator)
    reference = (logits.double() / temperature).log_softmax(-1)
    logprobs, entropy = token_logprobs(logits, tokens, temperature), token_entropies(logits, temperature)
    assert logprobs.dtype == torch.float32
    for row in range(3):
        for t in range(4):
            expected = float(reference[row, t, tokens[row, t]])
            assert float(logprobs[row, t]) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    torch.testing.assert_close(entropy.double(), -(reference.exp() * reference).sum(-1), rtol=1e-5, atol=1e-6)


def test_the_entropy_of_equal_logits_is_the_log_of_their_number() -> None:
    entropy = token_entropies(torch.full((1, 1, 8), 3.0), 0.5)
    assert float(entropy) == pytest.approx(math.log(8), rel=1e-6)
