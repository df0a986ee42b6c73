"""Rows of token ids that begin alike, as one sequence in which what they share is computed once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """N rows of token ids as one sequence of T tokens, one for each different beginning of a row."""

    input_ids: Tensor  # (1, T)
    position_ids: Tensor  # (1, T), as in the tokens' own rows
    visible: Tensor  # (1, 1, T, T) True where a token may attend to another
    last: Tensor  # (N,) where each row ends

    def inputs(self, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the keyword arguments of a model's forward; `dtype` is that of its weights."""
        mask = torch.zeros(self.visible.shape, dtype=dtype).masked_fill(~self.visible, torch.finfo(dtype).min)
        return {
            "input_ids": self.input_ids.to(device),
            "position_ids": self.position_ids.to(device),
            "attention_mask": mask.to(device),
        }


def pack(rows: Sequence[Sequence[int]]) -> Packed:
    """Pack rows as a prefix tree, which is written row by row; each token sees exactly what it sees in its own row."""
    places: dict[tuple[int, int], int] = {}  # (place of the token before, token) -> place
    parents, last = list[int](), list[int]()
    tokens, positions = list[int](), list[int]()
    for row in rows:
        place = -1
        for position, token in enumerate(row):
            parent, place = place, places.setdefault((place, token), len(tokens))
            if place == len(tokens):
                parents.append(parent)
                tokens.append(token)
                positions.append(position)
        last.append(place)
    visible = torch.eye(len(tokens), dtype=torch.bool)
    for place, parent in enumerate(parents):
        if parent >= 0:
            visible[place] |= visible[parent]
    return Packed(torch.tensor([tokens]), torch.tensor([positions]), visible[None, None], torch.tensor(last))
