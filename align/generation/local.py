"""The reference backend: a causal LM of transformers, in batches, on one process or several.

Rows of similar length share a batch. The model reads a prompt once for its n samples, and the common start of all
judged prompts (the rubric) once. The KV cache has room for the whole reply, so a step copies only one token's states.
"""

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click
import psutil
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from align.core.errors import InputError
from align.generation.generator import Generator, Progress, as_row
from align.generation.sampling import SamplingParams, sample_tokens
from align.models.batching import common_prefix, cut_batches, left_pad, positions
from align.models.frozen import frozen_linears
from align.run.runtime import row_seed
from align.run.work import Rows, Work

MEMORY_SHARE = 0.5  # of the free memory is for keys and values
# Finished rows leave the batch once they are this share of it: removing them copies all keys and values.
LEAVE_SHARE = 1 / 8


class TorchGenerator(Generator):
    """A causal LM in eval mode that decodes and scores batches.

    Args:
        model: on its device; it computes with the active adapter.
        tokenizer: its tokenizer, with a pad token that is not EOS.
        batch_size: the most rows (prompts x n) in a batch; at least n are.
        max_batch_tokens: the most tokens in a batch, including padding and new tokens; None: as many as memory holds.
        process: this process, if there are several.
        work, name: see `Generator`.
    """

    backend = "transformers"
    dtype = torch.float32  # of the products of a float32 model on a CPU

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        max_batch_tokens: int | None = None,
        process: PartialState | None = None,
        work: Work | None = None,
        name: str = "",
    ) -> None:
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        super().__init__(tokenizer, limit, work, name)
        self.model, self.batch_size, self.process = model, batch_size, process
        budgets: list[int] = [max_batch_tokens or tokens_in_memory(model)]
        # All processes must cut the same batches, so the smallest memory decides.
        self.max_batch_tokens = min(gather_object(budgets) if process is not None else budgets)
        assert tokenizer.pad_token_id is not None
        self.pad_id = int(tokenizer.pad_token_id)

    @torch.no_grad()
    def _generate(
        self,
        prompts: Sequence[list[int]],
        sampling: SamplingParams,
        seeds: Sequence[int],
        n: int,
        progress: Progress,
        rows: Rows,
    ) -> None:
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), prompts[i], seeds[i]))
        lengths = [n * (len(prompt) + sampling.max_new_tokens) for prompt in prompts]
        batches = cut_batches(
            order, lengths, max(1, self.batch_size // n), max_tokens=self._budget(), max_ratio=float("inf")
        )

        def decode(batch: list[int]) -> list[list[Any]]:
            decoded = self._decode([prompts[i] for i in batch], sampling, [seeds[i] for i in batch], n, progress)
            return [as_row(self.completion(ids)) for ids in decoded]

        with frozen_linears(self.model, self.dtype):
            self._map(batches, decode, progress, rows, n)

    @torch.no_grad()
    def _next_token_logprobs(
        self, prompts: Sequence[list[int]], token_ids: Sequence[int], progress: Progress, rows: Rows
    ) -> None:
        shared = common_prefix(prompts)
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), prompts[i]))
        # Each row has a copy of the shared part, so the budget counts whole prompts; only the rest is padded.
        max_rows = max(1, min(self.batch_size, self._budget() // len(prompts[order[-1]])))
        batches = cut_batches(order, [len(prompt) - shared for prompt in prompts], max_rows)
        prefix = DynamicCache(config=self.model.config)

        def score(batch: list[int]) -> list[list[float]]:
            ids, mask = left_pad([prompts[i][shared:] for i in batch], self.pad_id, self.model.device)
            mask = torch.cat([mask.new_ones(len(batch), shared), mask], dim=1)
            cache = copy.deepcopy(prefix)
            if shared:
                cache.batch_repeat_interleave(len(batch))
            logits = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions(mask)[:, shared:],
                past_key_values=cache,
                logits_to_keep=1,
            ).logits[:, -1]
            progress.update(len(batch), sum(len(prompts[i]) - shared for i in batch))
            logprobs: list[list[float]] = logits.float().log_softmax(-1)[:, list(token_ids)].tolist()
            return logprobs

        with frozen_linears(self.model, self.dtype):
            if shared:
                ids = torch.tensor([prompts[0][:shared]], device=self.model.device)
                self.model(input_ids=ids, past_key_values=prefix, logits_to_keep=1)
            self._map(batches, score, progress, rows, 1)

    def _map(
        self,
        batches: Iterator[list[int]],
        function: Callable[[list[int]], list[Any]],
        progress: Progress,
        rows: Rows,
        n: int,
    ) -> None:
        """Finish this process's share of the batches, n rows per prompt, then gather the rows of other processes.

        Neither the number of processes nor an earlier kill changes the batches. One that exceeds memory is halved.
        """
        number, count = (self.process.process_index, self.process.num_processes) if self.process else (0, 1)
        waiting = list(batches)[number::count][::-1]
        numbers = {i: range(i * n, (i + 1) * n) for batch in waiting for i in batch}
        progress.bar.total = progress.bar.n + sum(k not in rows for parts in numbers.values() for k in parts)
        while waiting:
            batch = waiting.pop()
            finished = [numbers[i][0] in rows for i in batch]
            if all(finished):
                continue
            if any(finished):  # the earlier run halved it
                waiting += [batch[len(batch) // 2 :], batch[: len(batch) // 2]]
                continue
            before = progress.bar.n
            try:
                values = function(batch)
            except RuntimeError as error:  # torch.OutOfMemoryError is one; on a CPU torch raises it plain
                if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                    raise
                if len(batch) == 1:
                    raise InputError(
                        "out of memory with a single row in the batch; lower max_new_tokens or the number of samples, "
                        "or take a smaller model or more memory"
                    ) from None
                progress.bar.n = before
                progress.halvings += 1
                waiting += [batch[len(batch) // 2 :], batch[: len(batch) // 2]]
            else:
                rows.finish(dict(zip((k for i in batch for k in numbers[i]), values, strict=True)))
            if progress.halvings and self.model.device.type == "cuda":
                torch.cuda.empty_cache()
        if progress.halvings:
            click.echo(
                f"{progress.halvings} batches did not fit into memory and were halved; "
                "lower runtime.batch_size or set generation.max_batch_tokens",
                err=True,
            )
        if count > 1:
            for theirs in gather_object([dict(rows)]):
                rows.update(theirs)

    def _budget(self) -> int:
        """Return the most tokens of a batch; a resumed run keeps the first run's value."""
        budget = self.work.rows("max_batch_tokens") if self.work else Rows()
        if 0 not in budget:
            budget.finish({0: self.max_batch_tokens})
        return int(budget[0])

    def _decode(
        self, prompts: list[list[int]], sampling: SamplingParams, seeds: list[int], n: int, progress: Progress
    ) -> list[list[int]]:
        """Decode n rows per prompt; return their ids without padding, including the EOS."""
        model, eos = self.model, self.tokenizer.eos_token_id
        ids, mask = left_pad(prompts, self.pad_id, model.device)
        cache = DynamicCache(config=model.config)
        logits = model(
            input_ids=ids, attention_mask=mask, position_ids=positions(mask), past_key_values=cache, logits_to_keep=1
        ).logits[:, -1]
        for number, layer in enumerate(cache.layers):
            assert isinstance(layer, DynamicLayer)
            if type(layer) is DynamicLayer:  # layers with a sliding window stay short
                cache.layers[number] = RoomyLayer(layer, n, sampling.max_new_tokens)
            else:
                layer.batch_repeat_interleave(n)
        logits, mask = logits.repeat_interleave(n, 0), mask.repeat_interleave(n, 0)
        uniforms = torch.stack(
            [
                torch.rand(sampling.max_new_tokens, generator=torch.Generator().manual_seed(row_seed(seed, k)))
                for seed in seeds
                for k in range(n)
            ]
        ).to(model.device)
        rows: list[list[int]] = [[] for _ in range(len(prompts) * n)]
        batch = torch.arange(len(rows), device=model.device)  # the row number at each place of the batch
        ended = torch.zeros(len(rows), dtype=torch.bool, device=model.device)
        for step in range(sampling.max_new_tokens):
            tokens = sample_tokens(logits, sampling, uniforms[batch, step])
            alive = [place for place, done in enumerate(ended.tolist()) if not done]
            for row, token in zip(batch[alive].tolist(), tokens[alive].tolist(), strict=True):
                rows[row].append(token)
            now = (tokens == eos) & ~ended
            ended |= now
            last = step + 1 == sampling.max_new_tokens or bool(ended.all())
            progress.update(len(alive) if last else int(now.sum()), len(alive))
            if last:
                break
            if int(ended.sum()) >= LEAVE_SHARE * len(batch):
                index = (~ended).nonzero().squeeze(-1)
                cache.batch_select_indices(index)
                tokens, mask, batch, ended = tokens[index], mask[index], batch[index], ended[index]
            mask = torch.cat([mask, mask.new_ones(len(batch), 1)], dim=1)
            logits = model(
                input_ids=tokens.unsqueeze(-1),
                attention_mask=mask,
                position_ids=positions(mask)[:, -1:],
                past_key_values=cache,
                logits_to_keep=1,
            ).logits[:, -1]
        return rows


class BFloat16Generator(TorchGenerator):
    """The reference with bfloat16 products, for CPUs that have them; docs/INFERENCE.md measures the difference."""

    backend = "bfloat16"
    dtype = torch.bfloat16


class RoomyLayer(DynamicLayer):
    """One layer's keys and values (B, heads, T, D) with room for new tokens; `DynamicLayer` copies all per token."""

    def __init__(self, layer: DynamicLayer, repeats: int, room: int) -> None:
        DynamicLayer.__init__(self)
        assert layer.keys is not None
        assert layer.values is not None
        self.lazy_initialization(layer.keys, layer.values)
        self.length = layer.keys.shape[-2]
        self.buffers = [
            torch.nn.functional.pad(states.repeat_interleave(repeats, 0), (0, 0, 0, room))
            for states in (layer.keys, layer.values)
        ]
        self._show()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the states of new tokens and return all."""
        first, self.length = self.length, self.length + key_states.shape[-2]
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, first : self.length] = states
        return self._show()

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows at `indices`."""
        self.buffers = [buffer.index_select(0, indices) for buffer in self.buffers]
        self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (buffer[:, :, : self.length] for buffer in self.buffers)
        return self.keys, self.values


def this_process() -> PartialState | None:
    """Return this process of `accelerate launch`, or None if it is the only one."""
    return PartialState(cpu=not torch.cuda.is_available()) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None


def tokens_in_memory(model: PreTrainedModel) -> int:
    """Return how many tokens' keys and values fit into `MEMORY_SHARE` of the free memory.

    Rounding down to a power of two keeps the batches stable when free memory varies a little.
    """
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize
    free = (
        torch.cuda.mem_get_info(model.device)[0] if model.device.type == "cuda" else psutil.virtual_memory().available
    )
    return 1 << max(0, int(MEMORY_SHARE * free / size).bit_length() - 1)
