"""Padded batches of token ids, and which rows share a batch."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

# In a scored batch, the longest row is at most this many times as long as the shortest: padding costs as much as text,
# and a batch of few long rows is as fast as one of many short ones.
MAX_LENGTH_RATIO = 1.1


def common_prefix(rows: Sequence[list[int]]) -> int:
    """Return how many leading ids all rows share, leaving at least one id of each row."""
    shortest = min(map(len, rows)) - 1
    shared = 0
    while shared < shortest and len({row[shared] for row in rows}) == 1:
        shared += 1
    return shared


def cut_batches(
    order: Sequence[int],
    lengths: Sequence[int],
    max_rows: int,
    *,
    max_tokens: float = math.inf,
    max_ratio: float = MAX_LENGTH_RATIO,
) -> Iterator[list[int]]:
    """Yield `order`, row numbers by ascending length, in batches.

    A batch has at most `max_rows` rows, `max_tokens` tokens including padding (a longer row is a batch of its own), and
    no row longer than `max_ratio` times its shortest.
    """
    batch: list[int] = []
    for i in order:
        if batch and (
            len(batch) == max_rows
            or (len(batch) + 1) * lengths[i] > max_tokens
            or lengths[i] > max_ratio * lengths[batch[0]]
        ):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def left_pad(rows: Sequence[list[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids (B, T) padded on the left and their mask (B, T), 1 on real tokens."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def positions(mask: Tensor) -> Tensor:
    """Return position ids (B, T) that count real tokens only."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def place(rows: Sequence[Tensor], attention_mask: Tensor) -> Tensor:
    """Return the states (T, H) of each row's real tokens as one block (B, Q+R, H), 0 at padding."""
    block = rows[0].new_zeros(*attention_mask.shape, rows[0].shape[-1])
    block[attention_mask] = torch.cat(list(rows))
    return block


@dataclass(frozen=True, kw_only=True)
class PaddedBatch:
    """Prompts and responses as one padded block: all responses start at the same column.

    Q is the longest prompt, R the longest response.
    """

    input_ids: Tensor  # (B, Q+R) prompts padded on the left, responses on the right
    attention_mask: Tensor  # (B, Q+R) True on real tokens
    response_mask: Tensor  # (B, R) True on real response tokens, the EOS included

    @property
    def responses(self) -> Tensor:
        """The response tokens, (B, R)."""
        return self.input_ids[:, -self.response_mask.shape[1] :]

    @property
    def position_ids(self) -> Tensor:
        """See `positions`, (B, Q+R)."""
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
