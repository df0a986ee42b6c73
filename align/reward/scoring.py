"""Score responses with a reward model."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from tqdm import tqdm

from align.models.batching import cut_batches, left_pad, positions
from align.models.frozen import frozen_linears
from align.models.packing import pack
from align.models.stack import AdapterStack


def reward_scores(
    stack: AdapterStack, name: str, rows: Sequence[list[int]], *, batch_size: int, description: str | None = None
) -> list[float]:
    """Return the reward model's centred score, its head's output at the EOS, of each row of token ids.

    The model was trained on ended replies only, and at other tokens its head has another scale (docs/LOG.md has a PPO
    run that exploited the difference). So a row that was cut off is scored as if it ended there.
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
    """Return `reward_scores` and, for each of `layers`, the input states (T, H) of each row's T tokens."""
    eos = stack.tokenizer.eos_token_id
    lengths = [len(row) for row in rows]
    ended = [row if row[-1] == eos else [*row, eos] for row in rows]
    order = sorted(range(len(rows)), key=lambda i: len(ended[i]))
    scores = [0.0] * len(rows)
    states: dict[int, list[Tensor]] = {layer: [torch.empty(0)] * len(rows) for layer in layers}
    with (
        stack.using(name) as model,
        stack.recording(layers, name) as recorded,
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
                for layer, inputs in recorded.items():
                    states[layer][i] = inputs[position, first : first + lengths[i]]
            progress.update(len(batch))
    return scores, states


@contextmanager
def packed_scorer(stack: AdapterStack, name: str) -> Iterator[Callable[[Sequence[list[int]]], list[float]]]:
    """Yield a function that returns the centred scores of rows of token ids that begin alike and end with an EOS.

    The rows are one sequence, in which what they share is computed once. No weight may change within the block.
    """
    head = stack.heads[name]
    with stack.using(name) as model, frozen_linears(model, torch.float32), torch.no_grad():

        def score(rows: Sequence[list[int]]) -> list[float]:
            packed = pack(rows)
            hidden = model.base_model(**packed.inputs(stack.device, model.dtype), use_cache=False).last_hidden_state
            scores: list[float] = head(hidden[0, packed.last.to(stack.device)]).tolist()
            return scores

        yield score
