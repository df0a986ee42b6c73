"""Responses scored by a reward model: its head at the EOS."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from align.models.batching import cut_batches, left_pad, positions
from align.models.stack import AdapterStack


def reward_scores(
    stack: AdapterStack, name: str, rows: Sequence[list[int]], *, batch_size: int, description: str | None = None
) -> list[float]:
    """Return the reward model's score of each row of token ids: its head at the EOS, centred.

    The model has learned from ended replies alone, so a row that was cut off is scored as if it ended there: at another
    token the head's output is on another scale (docs/LOG.md has a PPO run that lived on the difference).
    """
    return score_and_record(stack, name, rows, (), batch_size=batch_size, description=description)[0]


@torch.no_grad()
def score_and_record(
    stack: AdapterStack,
    name: str,
    rows: Sequence[list[int]],
    layers: Collection[int],
    *,
    batch_size: int,
    description: str | None = None,
) -> tuple[list[float], dict[int, list[Tensor]]]:
    """Return `reward_scores` and, for each of `layers`, the states (T, H) of each row's T tokens that entered it."""
    eos = stack.tokenizer.eos_token_id
    lengths = [len(row) for row in rows]
    ended = [row if row[-1] == eos else [*row, eos] for row in rows]
    order = sorted(range(len(rows)), key=lambda i: len(ended[i]))
    scores = [0.0] * len(rows)
    states: dict[int, list[Tensor]] = {layer: [torch.empty(0)] * len(rows) for layer in layers}
    with (
        stack.using(name) as model,
        stack.recording(layers) as recorded,
        tqdm(total=len(rows), desc=description, unit="row", disable=description is None) as progress,
    ):
        for batch in cut_batches(order, [len(row) for row in ended], batch_size):
            ids, mask = left_pad([ended[i] for i in batch], int(stack.tokenizer.pad_token_id or 0), stack.device)
            hidden = model.base_model(
                input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False
            ).last_hidden_state
            for position, (i, score) in enumerate(zip(batch, stack.heads[name](hidden[:, -1]).tolist(), strict=True)):
                scores[i] = score
                first = ids.shape[1] - len(ended[i])
                for layer, found in recorded.items():
                    states[layer][i] = found[position, first : first + lengths[i]]
            progress.update(len(batch))
    return scores, states
