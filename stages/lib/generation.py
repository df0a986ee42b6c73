"""Inference: completions of prompts, and the next-token distribution after them. Every caller goes through here.

Batches are cut from the prompts sorted by length, so neither the order of the prompts nor another row's random numbers
change what a row gets: each row has a seed of its own.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from stages.lib.records import FinishReason
from stages.lib.runtime import row_seed

# The sampler looks at this many top tokens first and sorts the whole vocabulary only where they are not enough.
TOP_TOKENS = 256
# A scored batch is closed before a row more than this many times as long as its shortest: a forward over padding costs
# what one over text costs, and a batch of few long rows is as fast as one of many short ones.
MAX_LENGTH_RATIO = 1.1


@dataclass(frozen=True)
class SamplingParams:
    """How to sample: `temperature` 0 is greedy; `top_p` 1 keeps the whole vocabulary."""

    max_new_tokens: int
    temperature: float
    top_p: float = 1.0


@dataclass(frozen=True)
class Completion:
    """A reply: its token ids (with the EOS, if it ends by itself), its text, and why it ended."""

    token_ids: list[int]
    text: str
    finish_reason: FinishReason


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    sampling: SamplingParams,
    seeds: Sequence[int],
    *,
    n: int = 1,
    batch_size: int,
    description: str | None = None,
) -> list[list[Completion]]:
    """Return `n` completions for each prompt.

    Args:
        model: a causal LM in eval mode.
        tokenizer: its tokenizer, with a pad token that is not EOS.
        prompts: token ids, at least one each.
        sampling: see `SamplingParams`.
        seeds: one for each prompt; sample k of prompt i depends on `seeds[i]` and k alone.
        n: samples a prompt; the prompt is prefilled once for all of them.
        batch_size: rows (prompts x n) decoded together, at most (n, if that is more).
        description: the progress bar's text; None shows no bar.
    """
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), prompts[i], seeds[i]))
    results: list[list[Completion]] = [[] for _ in prompts]
    chunk = max(1, batch_size // n)
    with progress_bar(len(prompts) * n, description) as progress:
        for start in range(0, len(order), chunk):
            batch = order[start : start + chunk]
            rows = _decode_batch(
                model, tokenizer, [prompts[i] for i in batch], sampling, [seeds[i] for i in batch], n, progress
            )
            for position, i in enumerate(batch):
                results[i] = [_completion(tokenizer, ids) for ids in rows[position * n : (position + 1) * n]]
    return results


@torch.no_grad()
def next_token_logprobs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    token_ids: Sequence[int],
    *,
    batch_size: int,
    description: str | None = None,
) -> list[list[float]]:
    """Return, for each prompt, the log-probability (nats, over the whole vocabulary) of each of `token_ids` as next.

    What all prompts begin with (a judge's rubric) is prefilled once.
    """
    shared = common_prefix(prompts)
    prefix = torch.tensor([prompts[0][:shared]], device=model.device) if shared else None
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), prompts[i]))
    results: list[list[float]] = [[] for _ in prompts]
    with progress_bar(len(prompts), description) as progress:
        prefix_cache = _new_cache(model)
        if prefix is not None:
            model(input_ids=prefix, past_key_values=prefix_cache, logits_to_keep=1)
        for batch in like_lengths(order, [len(prompt) - shared for prompt in prompts], batch_size):
            ids, mask = left_pad([prompts[i][shared:] for i in batch], _pad_id(tokenizer), model.device)
            mask = torch.cat([mask.new_ones(len(batch), shared), mask], dim=1)
            cache = copy.deepcopy(prefix_cache)
            if shared:
                cache.batch_repeat_interleave(len(batch))
            logits = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions(mask)[:, shared:],
                past_key_values=cache,
                logits_to_keep=1,
            ).logits[:, -1]
            logprobs = logits.float().log_softmax(-1)[:, list(token_ids)]
            for i, row in zip(batch, logprobs.tolist(), strict=True):
                results[i] = row
            progress.update(len(batch))
    return results


def common_prefix(rows: Sequence[list[int]]) -> int:
    """Return how many first ids all rows share, leaving at least one of each row."""
    shortest = min(map(len, rows)) - 1
    shared = 0
    while shared < shortest and len({row[shared] for row in rows}) == 1:
        shared += 1
    return shared


def like_lengths(order: Sequence[int], lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield `order`, row numbers by growing length, in batches of at most `batch_size` that need little padding."""
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) == batch_size or lengths[i] > MAX_LENGTH_RATIO * lengths[batch[0]]):
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
    """Return position ids (B, T) that count real tokens only, so that padding does not move a row."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def progress_bar(total: int, description: str | None) -> "tqdm[Any]":
    """Return a bar that counts rows, or an invisible one without a description."""
    return tqdm(total=total, desc=description, unit="row", disable=description is None)


def sample_tokens(logits: Tensor, sampling: SamplingParams, uniforms: Tensor) -> Tensor:
    """Draw one token a row by inverting the cumulative distribution at `uniforms`.

    Args:
        logits: (B, V).
        sampling: temperature scales the logits; top_p keeps the smallest set of most likely tokens whose probability
            reaches it (Holtzman et al., 2020).
        uniforms: (B,), in [0, 1).
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probs = (logits.float() / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        count = min(TOP_TOKENS, probs.shape[-1])
        kept, ids = probs.topk(count, dim=-1)
        if bool((kept.sum(-1) < sampling.top_p).any()):
            kept, ids = probs.sort(dim=-1, descending=True)
        before = kept.cumsum(-1) - kept
        kept = kept.masked_fill(before >= sampling.top_p, 0.0)
    else:
        kept, ids = probs, None
    cumulative = kept.double().cumsum(-1)
    threshold = uniforms.double().unsqueeze(-1) * cumulative[:, -1:]
    # The first index whose cumulative probability exceeds the threshold: never a token of probability 0.
    picked = torch.searchsorted(cumulative, threshold, right=True).clamp(max=kept.shape[-1] - 1)
    return (picked if ids is None else ids.gather(-1, picked)).squeeze(-1)


def _decode_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    sampling: SamplingParams,
    seeds: list[int],
    n: int,
    progress: "tqdm[Any]",
) -> list[list[int]]:
    """Decode n rows a prompt; finished rows leave the batch. Returns ids without padding, EOS included."""
    ids, mask = left_pad(prompts, _pad_id(tokenizer), model.device)
    cache = _new_cache(model)
    logits = model(
        input_ids=ids, attention_mask=mask, position_ids=positions(mask), past_key_values=cache, logits_to_keep=1
    ).logits[:, -1]
    cache.batch_repeat_interleave(n)
    logits, mask = logits.repeat_interleave(n, 0), mask.repeat_interleave(n, 0)
    uniforms = torch.stack(
        [
            torch.rand(sampling.max_new_tokens, generator=torch.Generator().manual_seed(row_seed(seed, k)))
            for seed in seeds
            for k in range(n)
        ]
    ).to(model.device)
    rows: list[list[int]] = [[] for _ in range(len(prompts) * n)]
    alive = torch.arange(len(rows), device=model.device)
    for step in range(sampling.max_new_tokens):
        tokens = sample_tokens(logits, sampling, uniforms[alive, step])
        for row, token in zip(alive.tolist(), tokens.tolist(), strict=True):
            rows[row].append(token)
        keep = tokens != tokenizer.eos_token_id
        if step + 1 == sampling.max_new_tokens or not bool(keep.any()):
            progress.update(len(alive))
            break
        if not bool(keep.all()):
            progress.update(int((~keep).sum()))
            index = keep.nonzero().squeeze(-1)
            cache.batch_select_indices(index)
            tokens, mask, alive = tokens[index], mask[index], alive[index]
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
        logits = model(
            input_ids=tokens.unsqueeze(-1),
            attention_mask=mask,
            position_ids=positions(mask)[:, -1:],
            past_key_values=cache,
            logits_to_keep=1,
        ).logits[:, -1]
    return rows


def _completion(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> Completion:
    stopped = ids[-1] == tokenizer.eos_token_id
    text = str(tokenizer.decode(ids[:-1] if stopped else ids, skip_special_tokens=True))
    return Completion(ids, text, "stop" if stopped else "length")


def _new_cache(model: PreTrainedModel) -> DynamicCache:
    return DynamicCache(config=model.config)


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    assert tokenizer.pad_token_id is not None
    return int(tokenizer.pad_token_id)
