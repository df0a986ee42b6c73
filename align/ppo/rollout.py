"""What PPO trains on: sampled responses with everything known about them at the time of sampling."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from align.generation.generator import Completion
from align.models.batching import left_pad, positions


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Prompts and responses as one padded block: prompts end, and responses start, at the same column.

    Q is the longest prompt, R the longest response.
    """

    input_ids: Tensor  # (B, Q+R) prompts padded on the left, responses on the right
    attention_mask: Tensor  # (B, Q+R) True on real tokens
    response_mask: Tensor  # (B, R) True on real response tokens, the EOS included
    # (B, Q+R, H) where forwards begin, if not at the embeddings: see PPOTrainer
    policy_states: Tensor | None = None
    value_states: Tensor | None = None

    @property
    def responses(self) -> Tensor:
        """The response tokens, (B, R)."""
        return self.input_ids[:, -self.response_mask.shape[1] :]

    @property
    def position_ids(self) -> Tensor:
        """Positions that padding does not move, (B, Q+R)."""
        return positions(self.attention_mask)

    @classmethod
    def collate(
        cls, prompts: Sequence[list[int]], responses: Sequence[list[int]], pad_id: int, device: torch.device
    ) -> Self:
        """Pad prompts on the left and responses on the right."""
        prompt_ids, prompt_mask = left_pad(prompts, pad_id, device)
        flipped_ids, flipped_mask = left_pad([row[::-1] for row in responses], pad_id, device)
        response_mask = flipped_mask.flip(1).bool()
        input_ids = torch.cat([prompt_ids, flipped_ids.flip(1)], dim=1)
        attention_mask = torch.cat([prompt_mask.bool(), response_mask], dim=1)
        return cls(input_ids=input_ids, attention_mask=attention_mask, response_mask=response_mask)

    def rows(self, index: Tensor) -> Self:
        """Return the rows at `index`, without the columns at both ends where all of them are padding."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        values = {name: value[index] for name, value in found.items() if value is not None}
        whole, part = self.attention_mask.shape[1], self.response_mask.shape[1]
        real = values["attention_mask"].any(0).nonzero().squeeze(-1)
        first, end = int(real[0]), int(real[-1]) + 1
        for name, value in values.items():
            if value.dim() > 1:
                values[name] = value[:, first:end] if value.shape[1] == whole else value[:, : part - whole + end]
        return type(self)(**values)


@dataclass(frozen=True, kw_only=True)
class Rollout(Batch):
    """A batch with its evaluation under policy, reference, value and reward model, all without gradient."""

    logprobs: Tensor  # (B, R) log pi_old(a|s), by the trainer's own forward
    entropies: Tensor  # (B, R) of pi_old(.|s), in nats
    ref_logprobs: Tensor  # (B, R) log pi_ref(a|s)
    values: Tensor  # (B, R) V_old(s)
    advantages: Tensor  # (B, R) whitened
    returns: Tensor  # (B, R) targets of the value function
    scores: Tensor  # (B,) of the reward model, before the penalty for a missing EOS
    ended: Tensor  # (B,) True where the response ends with EOS


def place(rows: Sequence[Tensor], attention_mask: Tensor) -> Tensor:
    """Return states (T, H) of each row's real tokens as one block (B, Q+R, H), 0 where there is padding."""
    block = rows[0].new_zeros(*attention_mask.shape, rows[0].shape[-1])
    block[attention_mask] = torch.cat(list(rows))
    return block


def collate_completions(
    prompts: Sequence[list[int]], completions: Sequence[Completion], pad_id: int, device: torch.device
) -> Batch:
    """Return prompts with one completion each as a batch."""
    return Batch.collate(prompts, [completion.token_ids for completion in completions], pad_id, device)
