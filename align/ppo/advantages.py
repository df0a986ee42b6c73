"""Rewards and advantages for PPO, on plain tensors.

`mask` is bool, True on real response tokens, including the EOS. Values elsewhere are ignored.
"""

import torch
from torch import Tensor

from align.ppo.losses import LOG_RATIO_LIMIT
from align.ppo.settings import TruncatedSettings


def last_token_index(mask: Tensor) -> Tensor:
    """Return the index (B,) of the last True of each row of `mask` (B, R); each row must have one."""
    return mask.shape[1] - 1 - mask.flip(1).int().argmax(1)


def token_rewards(logprobs: Tensor, ref_logprobs: Tensor, scores: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Return the reward of each token: -kl_coef * (log pi - log pi_ref), plus the score at the last real token.

    The log-ratio is the k1 estimator, the only one whose gradient inside the reward is that of the KL divergence. It is
    clamped to +-`LOG_RATIO_LIMIT`, so that a token that one of the two finds impossible leaves a finite reward.

    Args:
        logprobs, ref_logprobs: (B, R), of the sampled tokens under policy and reference, in nats.
        scores: (B,), one per response.
        mask: (B, R).
        kl_coef: weight of the KL penalty.
    """
    rewards = -kl_coef * _log_ratio(logprobs, ref_logprobs, mask)
    rows = torch.arange(len(rewards), device=rewards.device)
    rewards[rows, last_token_index(mask)] += scores
    return rewards


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Return (advantages, returns), both (B, R): generalized advantage estimation (arXiv 1506.02438, equation 16).

    The value after the last real token is 0: the episode has ended. Returns are advantages + values, before whitening.
    """
    values = torch.where(mask, values, 0.0)
    rewards = torch.where(mask, rewards, 0.0)
    advantages = torch.zeros_like(rewards)
    next_advantage = next_value = torch.zeros_like(rewards[:, 0])
    for t in range(rewards.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = (delta + gamma * lam * next_advantage) * mask[:, t]
        next_value = values[:, t]
        advantages[:, t] = next_advantage
    return advantages, advantages + values


def rloo(rewards: Tensor, num_generations: int) -> Tensor:
    """Return REINFORCE leave-one-out advantages (B,): reward less the mean of the prompt's others (arXiv 2402.14740).

    Args:
        rewards: (B,), the responses to one prompt next to each other; see `sequence_rewards`.
        num_generations: responses to a prompt, 2 or more.
    """
    groups = rewards.view(-1, num_generations)
    others = (groups.sum(1, keepdim=True) - groups) / (num_generations - 1)
    return (groups - others).flatten()


def grpo(rewards: Tensor, num_generations: int) -> Tensor:
    """Return group-relative advantages (B,): rewards with mean 0 and deviation 1 in each group (arXiv 2402.03300).

    A group of equal rewards gets 0. The KL penalty is no part of them: `kl_loss` is a term of the loss.

    Args:
        rewards: (B,), the responses to one prompt next to each other.
        num_generations: responses to a prompt, 2 or more.
    """
    groups = rewards.view(-1, num_generations)
    centred = groups - groups.mean(1, keepdim=True)
    return (centred / (groups.std(1, correction=0, keepdim=True) + 1e-4)).flatten()


def truncated_rewards(
    scores: Tensor, mask: Tensor, ended: Tensor, truncated: TruncatedSettings, max_new_tokens: int
) -> Tensor:
    """Return the rewards (B,): the scores, and what `truncated.mode` makes of responses that were cut off.

    - keep, mask: their own scores (masked ones are left out of the loss elsewhere).
    - penalty: `value` is taken off.
    - score: `value` replaces it, since a reward model may have seen ended replies only (arXiv 2403.17031).
    - soft_punish: `value` is taken off in proportion to how far a response, ended or not, reaches into the last
      `soft_punish_cache` tokens before the limit (arXiv 2503.14476, equation 13, times `value`).

    Args:
        scores: (B,), one per response.
        mask: (B, R).
        ended: (B,), True where a response ends with EOS.
        truncated: `ppo.truncated`.
        max_new_tokens: the limit.
    """
    if truncated.value is None:
        return scores
    if truncated.mode == "score":
        return torch.where(ended, scores, truncated.value)
    share = (~ended).float()
    if truncated.soft_punish_cache is not None:
        beyond = mask.sum(1) - (max_new_tokens - truncated.soft_punish_cache)
        share = (beyond / truncated.soft_punish_cache).clamp(0, 1)
    return scores - truncated.value * share


def sequence_rewards(logprobs: Tensor, ref_logprobs: Tensor, scores: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Return the reward of each response, (B,): the sum of its `token_rewards`, which has the same arguments."""
    return scores - kl_coef * _log_ratio(logprobs, ref_logprobs, mask).sum(1)


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """Return x with mean 0 and standard deviation 1 over the batch's real tokens, and 0 elsewhere."""
    real = x[mask] if bool(mask.any()) else x.new_zeros(1)
    return torch.where(mask, (x - real.mean()) / (real.std(correction=0) + 1e-8), 0.0)


def _log_ratio(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, (logprobs - ref_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT), 0.0)
