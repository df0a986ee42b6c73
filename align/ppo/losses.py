"""The losses of PPO, on plain tensors. `mask` is True on real response tokens."""

import torch
from torch import Tensor

# Far beyond any ratio that PPO tolerates, and far below where its exponential overflows.
LOG_RATIO_LIMIT = 20.0


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """Return float32 log-probabilities (B, R) of `tokens` (B, R) under softmax(logits / temperature).

    Rollouts are drawn from that distribution. `logits`, (B, R, V), are those that predict each token.
    """
    scaled = _scaled(logits, temperature)
    return scaled.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - scaled.logsumexp(-1)


def token_entropies(logits: Tensor, temperature: float) -> Tensor:
    """Return the float32 entropy (B, R), in nats, of softmax(logits / temperature) for logits (B, R, V)."""
    logprobs = _scaled(logits, temperature).log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)


def policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, cliprange: float) -> Tensor:
    """Return PPO's clipped surrogate loss, (B, R), 0 outside the mask (arXiv 1707.06347, equation 7, negated)."""
    ratio = torch.where(mask, logprobs - old_logprobs, 0.0).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return torch.where(mask, torch.maximum(unclipped, clipped), 0.0)


def kl_loss(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Return the k3 estimate of the KL to the reference, (B, R), 0 outside the mask (arXiv 2402.03300, equation 4).

    It is never negative, and its gradient pulls `logprobs` towards `ref_logprobs`.
    """
    log_ratio = torch.where(mask, ref_logprobs - logprobs, 0.0).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return log_ratio.exp() - 1 - log_ratio


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, cliprange_value: float) -> Tensor:
    """Return half the squared error of the values, clipped around the old ones, (B, R), 0 outside the mask."""
    clipped = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    worst = torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)
    return torch.where(mask, 0.5 * worst, 0.0)


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    # Logits are tokens x vocabulary, so skip the division at temperature 1.
    logits = logits.float()
    return logits if temperature == 1 else logits / temperature
