"""Labelled texts for a causal language model, each ended by its label: token ids, batches, likelihoods."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.core.errors import InputError, quoted
from align.models.batching import common_prefix, cut_batches
from align.models.tokenization import adds_bos
from align.run.work import Rows
from align.text.labelled import LabelledText

IGNORED = -100  # the label that transformers excludes from the loss
MAX_TOKENS = 2048  # of a scored batch, whose logits are tokens x vocabulary


@dataclass(frozen=True)
class Choices:
    """A row's ids up to where its possible labels differ, and the rest for each label; `gold` is the right one."""

    prefix: list[int]
    tails: list[list[int]]
    gold: int

    @property
    def ids(self) -> list[int]:
        """The row with its own label."""
        return self.prefix + self.tails[self.gold]

    @property
    def longest(self) -> int:
        """The tokens of the row with the longest label and an EOS."""
        return len(self.prefix) + max(map(len, self.tails)) + 1


def encode_choices_of(
    tokenizer: PreTrainedTokenizerBase, template: str, labels: Sequence[str], row: LabelledText
) -> Choices:
    """Encode a row once with each label; special tokens in the text are plain text.

    No label may be the prefix of another, and some token must be before the label.
    """
    bos = [tokenizer.bos_token_id] if adds_bos(tokenizer) else []
    texts = [template.format(text=row.text, label_text=label) for label in labels]
    encoded: list[list[int]] = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    encoded = [[*bos, *ids] for ids in encoded]
    shared = common_prefix(encoded)
    tails = [ids[shared:] for ids in encoded]
    begun = any(one == other[: len(one)] for one in tails for other in tails if one is not other)
    if shared == 0 or begun:
        what = "a label is the prefix of another" if begun else "there is no token before the label"
        raise InputError(
            f"params.yaml: text.template: {what} with this tokenizer in row {quoted(row.id)}; change it, or the labels"
        )
    return Choices(encoded[0][:shared], tails, labels.index(row.label_text))


def training_row(choices: Choices, loss: Literal["all", "label"], eos_id: int) -> dict[str, Any]:
    """Return a row for the trainer, ended by one EOS, with the loss over all of it or over label and EOS only."""
    ids = [*choices.ids, eos_id]
    first = len(choices.prefix) if loss == "label" else 0
    return {"input_ids": ids, "labels": [IGNORED] * first + ids[first:], "length": len(ids)}


def collate(rows: Sequence[dict[str, Any]], pad_id: int) -> dict[str, Tensor]:
    """Return `input_ids`, `attention_mask` and `labels`, (B, T), right-padded to the longest row."""
    width = max(len(row["input_ids"]) for row in rows)

    def padded(values: list[list[int]], filler: int) -> Tensor:
        return torch.tensor([value + [filler] * (width - len(value)) for value in values])

    ids = [row["input_ids"] for row in rows]
    return {
        "input_ids": padded(ids, pad_id),
        "attention_mask": padded([[1] * len(row) for row in ids], 0),
        "labels": padded([row["labels"] for row in rows], IGNORED),
    }


def check_positions(model: PreTrainedModel, max_length: int) -> None:
    """Raise `InputError` if the model has fewer than `max_length` positions."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and max_length > limit:
        raise InputError(f"params.yaml: text.max_length: {max_length}, but the model takes {limit} tokens; lower it")


@torch.no_grad()
def score_choices(
    model: PreTrainedModel,
    pad_id: int,
    rows: Sequence[Choices],
    finished: Rows,
    *,
    batch_size: int,
    description: str | None = None,
) -> list[dict[str, Any]]:
    """Return for each row `choices`, the log-likelihood of each label's tokens, and `row`, that of the row's tokens.

    The row's first token has none. Labels of one token each need only one forward.
    """
    lengths = [row.longest for row in rows]
    order = sorted(range(len(rows)), key=lambda i: lengths[i])
    with tqdm(total=len(rows), desc=description, unit="row", disable=description is None) as progress:
        for batch in cut_batches(order, lengths, batch_size, max_tokens=MAX_TOKENS):
            if any(i not in finished for i in batch):
                finished.finish(dict(zip(batch, _score(model, pad_id, [rows[i] for i in batch]), strict=True)))
            progress.update(len(batch))
    return [finished[i] for i in range(len(rows))]


def _score(model: PreTrainedModel, pad_id: int, rows: Sequence[Choices]) -> list[dict[str, Any]]:
    # The last token is only predicted, so rows that differ only there are one input.
    sequences = [[row.prefix + tail for tail in row.tails] for row in rows]
    inputs = list(dict.fromkeys(tuple(ids[:-1]) for candidates in sequences for ids in candidates))
    places = {ids: i for i, ids in enumerate(inputs)}
    block = collate([{"input_ids": list(ids), "labels": list(ids)} for ids in inputs], pad_id)
    moved = {key: block[key].to(model.device) for key in ("input_ids", "attention_mask")}
    logprobs = model(**moved).logits.float().log_softmax(-1).cpu()
    scores = []
    for row, candidates in zip(rows, sequences, strict=True):
        picked = [
            logprobs[places[tuple(ids[:-1])], torch.arange(len(ids) - 1), torch.tensor(ids[1:])] for ids in candidates
        ]
        sums = [float(values[len(row.prefix) - 1 :].double().sum()) for values in picked]
        scores.append({"choices": sums, "row": float(picked[row.gold].double().sum())})
    return scores
