"""Drawing the next token from logits."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Top-p sampling tries this many top tokens in turn, then sorts the whole vocabulary for the rows that need more.
TOP_TOKENS = (64, 1024)


@dataclass(frozen=True)
class SamplingParams:
    """How to sample: `temperature` 0 is greedy; `top_p` 1 keeps the whole vocabulary."""

    max_new_tokens: int
    temperature: float
    top_p: float = 1.0


def sample_tokens(logits: Tensor, sampling: SamplingParams, uniforms: Tensor) -> Tensor:
    """Draw one token per row of `logits` (B, V) by inverting the cumulative distribution at `uniforms` (B,) in [0, 1).

    `top_p` keeps the smallest set of most likely tokens whose probability reaches it (Holtzman et al., 2020).
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probs = (logits.float() / sampling.temperature).softmax(-1)
    if sampling.top_p >= 1:
        return _invert(probs, uniforms)
    tokens = torch.empty(len(probs), dtype=torch.long, device=probs.device)
    rows = torch.arange(len(probs), device=probs.device)  # rows without a token yet
    for count in (*TOP_TOKENS, probs.shape[-1]):
        kept, ids = probs[rows].topk(min(count, probs.shape[-1]), dim=-1)
        before = kept.cumsum(-1) - kept
        picked = _invert(kept.masked_fill(before >= sampling.top_p, 0.0), uniforms[rows])
        tokens[rows] = ids.gather(-1, picked.unsqueeze(-1)).squeeze(-1)
        rows = rows[kept.sum(-1) < sampling.top_p]
        if len(rows) == 0:
            break
    return tokens


def _invert(probs: Tensor, uniforms: Tensor) -> Tensor:
    """Return the first index (B,) where the cumulative sum of `probs` (B, K) exceeds `uniforms` times its total."""
    cumulative = probs.double().cumsum(-1)
    threshold = uniforms.double().unsqueeze(-1) * cumulative[:, -1:]
    # Strictly greater, so a token of probability 0 is never drawn.
    return torch.searchsorted(cumulative, threshold, right=True).clamp(max=probs.shape[-1] - 1).squeeze(-1)
