"""Inference: completions of prompts, and the next-token distribution after them.

`align.backends.choose` opens a `Generator` by name. A row's result depends on its prompt and seed alone, not on other
rows or their order.
"""

import hashlib
import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import click
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from align.core.errors import InputError
from align.core.rows import FinishReason
from align.generation.sampling import SamplingParams
from align.models.tokenization import decode_completion
from align.run.runtime import is_main_process
from align.run.work import Rows, Work


@dataclass(frozen=True)
class Completion:
    """A reply: its token ids (with the EOS, if the model wrote one), its text, and why it ended."""

    token_ids: list[int]
    text: str
    finish_reason: FinishReason


class Progress:
    """A progress bar of rows and tokens per second, shown if it has a description; `recovered` rows are done already.

    At the end it appends a summary to `.align/log/generation.jsonl`, a file that no stage reads.
    """

    def __init__(self, total: int, description: str | None, backend: str, recovered: int = 0) -> None:
        if not is_main_process():
            description = None
        if description is not None and recovered:
            click.echo(f"{description}: resuming with {recovered} of {total} rows finished")
        self.bar = tqdm(total=total, initial=recovered, desc=description, unit="row", disable=description is None)
        self.description, self.backend, self.recovered = description, backend, recovered
        self.tokens, self.halvings, self.begin = 0, 0, time.perf_counter()

    def update(self, rows: int = 0, tokens: int = 0) -> None:
        """Count finished rows and tokens."""
        self.tokens += tokens
        self.bar.set_postfix_str(f"{self.tokens / (time.perf_counter() - self.begin):.0f} tokens/s", refresh=False)
        self.bar.update(rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()
        if self.description is None or kind is not None:
            return
        seconds = time.perf_counter() - self.begin
        entry = {
            "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "description": self.description,
            "backend": self.backend,
            "rows": self.bar.n - self.recovered,
            "recovered": self.recovered,
            "tokens": self.tokens,
            "seconds": round(seconds, 3),
            "tokens_per_second": round(self.tokens / seconds, 1),
            "batches_halved": self.halvings,
        }
        log = Path(os.environ.get("DVC_ROOT", ".")) / ".align" / "log" / "generation.jsonl"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")


class Generator(ABC):
    """A model that generates text.

    Args:
        tokenizer: its tokenizer.
        max_length: the most tokens of prompt and reply together, if known.
        work: keeps finished rows until the stage succeeds; None keeps none.
        name: the model's name in `work`.
    """

    backend: str

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int | None, work: Work | None = None, name: str = ""
    ) -> None:
        self.tokenizer, self.max_length, self.work, self.name = tokenizer, max_length, work, name

    def generate(
        self,
        prompts: Sequence[list[int]],
        sampling: SamplingParams,
        seeds: Sequence[int],
        *,
        n: int = 1,
        description: str | None = None,
    ) -> list[list[Completion]]:
        """Return `n` completions for each prompt.

        Args:
            prompts: token ids, at least one each.
            sampling: see `SamplingParams`.
            seeds: one per prompt; sample k of prompt i depends on `prompts[i]`, `seeds[i]` and k alone.
            n: samples per prompt.
            description: the progress bar's label; None shows no bar.

        Raises:
            InputError: prompts leave no room for `max_new_tokens`.
        """
        assert len(prompts) == len(seeds)
        check_lengths(prompts, sampling.max_new_tokens, self.max_length)
        if not prompts:
            return []
        rows = self._rows("generate", prompts, vars(sampling), seeds, n)
        with Progress(len(prompts) * n, description, self.backend, len(rows)) as progress:
            self._generate(prompts, sampling, seeds, n, progress, rows)
        return [[Completion(*rows[i * n + k]) for k in range(n)] for i in range(len(prompts))]

    def next_token_logprobs(
        self, prompts: Sequence[list[int]], token_ids: Sequence[int], *, description: str | None = None
    ) -> list[list[float]]:
        """Return, for each prompt, the log-probability in nats of each of `token_ids` as the next token.

        Raises:
            InputError: prompts are too long.
        """
        check_lengths(prompts, 1, self.max_length)
        if not prompts:
            return []
        rows = self._rows("logprobs", prompts, list(token_ids))
        with Progress(len(prompts), description, self.backend, len(rows)) as progress:
            self._next_token_logprobs(prompts, token_ids, progress, rows)
        return [rows[i] for i in range(len(prompts))]

    @abstractmethod
    def _generate(
        self,
        prompts: Sequence[list[int]],
        sampling: SamplingParams,
        seeds: Sequence[int],
        n: int,
        progress: Progress,
        rows: Rows,
    ) -> None:
        """Finish all missing `rows`: sample k of prompt i is row i * n + k, `as_row` of a completion."""

    @abstractmethod
    def _next_token_logprobs(
        self, prompts: Sequence[list[int]], token_ids: Sequence[int], progress: Progress, rows: Rows
    ) -> None:
        """Finish all missing `rows`, one list of log-probabilities per prompt."""

    def _rows(self, *request: Any) -> Rows:
        if self.work is None:
            return Rows()
        text = json.dumps([self.name, *request], sort_keys=True)
        return self.work.rows(hashlib.sha256(text.encode()).hexdigest()[:16])

    def completion(self, ids: list[int]) -> Completion:
        """Return the completion with token ids `ids`."""
        stopped = ids[-1] == self.tokenizer.eos_token_id
        text = decode_completion(self.tokenizer, ids[:-1] if stopped else ids)
        return Completion(ids, text, "stop" if stopped else "length")


def as_row(completion: Completion) -> list[Any]:
    """Return a completion as a JSON value."""
    return [completion.token_ids, completion.text, completion.finish_reason]


def check_lengths(prompts: Sequence[list[int]], new_tokens: int, max_length: int | None) -> None:
    """Raise `InputError` if prompts leave no room for `new_tokens` in the model's `max_length` (None: no limit)."""
    too_long = [i for i, prompt in enumerate(prompts) if max_length and len(prompt) + new_tokens > max_length]
    if too_long:
        first = too_long[0]
        raise InputError(
            f"{len(too_long)} of {len(prompts)} prompts are too long: with {new_tokens} new tokens they exceed the "
            f"model's {max_length} tokens (first: prompt {first + 1}, {len(prompts[first])} tokens); shorten them, or "
            "lower max_new_tokens in params.yaml"
        )
