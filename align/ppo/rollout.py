"""PPO's training batch: sampled responses and everything measured on them when they were sampled."""

from dataclasses import dataclass, field, fields
from typing import Self

from torch import Tensor

from align.models.batching import PaddedBatch


@dataclass(frozen=True, kw_only=True)
class Batch(PaddedBatch):
    """Prompts and responses, with the states at which forwards begin (None: at the embeddings); see `PPOTrainer`."""

    policy_states: Tensor | None = None  # (B, Q+R, H)
    value_states: Tensor | None = None  # (B, Q+R, H)

    def rows(self, index: Tensor) -> Self:
        """Return the rows at `index`, without columns at both ends that are padding in all of them."""
        tensors = {one.name: getattr(self, one.name) for one in fields(self)}
        values = {name: tensor[index] for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
        whole, part = self.attention_mask.shape[1], self.response_mask.shape[1]
        real = values["attention_mask"].any(0).nonzero().squeeze(-1)
        first, end = int(real[0]), int(real[-1]) + 1
        for name, value in values.items():
            if value.dim() > 1:
                values[name] = value[:, first:end] if value.shape[1] == whole else value[:, : part - whole + end]
        return type(self)(**values)


@dataclass(frozen=True, kw_only=True)
class Rollout(Batch):
    """A batch evaluated under policy, reference and rewards, and the critic if there is one, without gradient."""

    logprobs: Tensor  # (B, R) log pi_old(a|s), by the trainer's forward
    entropies: Tensor  # (B, R) of pi_old(.|s), in nats
    ref_logprobs: Tensor  # (B, R) log pi_ref(a|s)
    advantages: Tensor  # (B, R), 0 at padding
    scores: Tensor  # (B,) weighted sums of the rewards, before the penalty for a missing EOS
    ended: Tensor  # (B,) True where the response ends with EOS
    loss_mask: Tensor  # (B, R) True on the tokens of the losses: all real ones, less those that truncated.mode masks
    values: Tensor | None = None  # (B, R) V_old(s), of the critic
    returns: Tensor | None = None  # (B, R) its targets
    reward_means: dict[str, float] = field(default_factory=dict)  # of each reward alone, by its column of the history
