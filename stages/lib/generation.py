"""Inference: completions of prompts, and the next-token distribution after them. Every caller goes through here.

A `Generator` is one model that writes; `stages.lib.backends` opens one by name. What a row gets follows from its prompt
and its seed: neither the order of the prompts nor another row's random numbers change it.
"""

import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from stages.lib.errors import InputError
from stages.lib.records import FinishReason
from stages.lib.runtime import is_main_process
from stages.lib.sampling import SamplingParams


@dataclass(frozen=True)
class Completion:
    """A reply: its token ids (with the EOS, if it ends by itself), its text, and why it ended."""

    token_ids: list[int]
    text: str
    finish_reason: FinishReason


class Progress:
    """A bar that counts rows and shows tokens a second; without a description it is not shown.

    At its end, what was done and how fast is appended to `.align/log/generation.jsonl`, a file that no stage reads.
    """

    def __init__(self, total: int, description: str | None, backend: str) -> None:
        if not is_main_process():
            description = None
        self.bar = tqdm(total=total, desc=description, unit="row", disable=description is None)
        self.description, self.backend, self.total = description, backend, total
        self.tokens, self.halvings, self.begin = 0, 0, time.perf_counter()

    def update(self, rows: int = 0, tokens: int = 0) -> None:
        """Count rows that are done, and tokens."""
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
            "rows": self.bar.n,
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
    """A model that writes.

    Args:
        tokenizer: its tokenizer.
        max_length: tokens that it can read and write together; None where that is not known.
    """

    backend: str

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length

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
            seeds: one for each prompt; sample k of prompt i depends on `prompts[i]`, `seeds[i]` and k alone.
            n: samples a prompt.
            description: the progress bar's text; None shows no bar.

        Raises:
            InputError: a prompt leaves no room for `max_new_tokens`; the message counts them.
        """
        assert len(prompts) == len(seeds)
        self._check_lengths(prompts, sampling.max_new_tokens)
        if not prompts:
            return []
        with Progress(len(prompts) * n, description, self.backend) as progress:
            return self._generate(prompts, sampling, seeds, n, progress)

    def next_token_logprobs(
        self, prompts: Sequence[list[int]], token_ids: Sequence[int], *, description: str | None = None
    ) -> list[list[float]]:
        """Return, for each prompt, how likely each of `token_ids` is as its next token: log-probabilities in nats.

        Raises:
            InputError: a prompt is too long; the message counts them.
        """
        self._check_lengths(prompts, 1)
        if not prompts:
            return []
        with Progress(len(prompts), description, self.backend) as progress:
            return self._next_token_logprobs(prompts, token_ids, progress)

    @abstractmethod
    def _generate(
        self, prompts: Sequence[list[int]], sampling: SamplingParams, seeds: Sequence[int], n: int, progress: Progress
    ) -> list[list[Completion]]: ...

    @abstractmethod
    def _next_token_logprobs(
        self, prompts: Sequence[list[int]], token_ids: Sequence[int], progress: Progress
    ) -> list[list[float]]: ...

    def completion(self, ids: list[int]) -> Completion:
        """Return the completion that consists of `ids`."""
        stopped = ids[-1] == self.tokenizer.eos_token_id
        text = str(self.tokenizer.decode(ids[:-1] if stopped else ids, skip_special_tokens=True))
        return Completion(ids, text, "stop" if stopped else "length")

    def _check_lengths(self, prompts: Sequence[list[int]], new_tokens: int) -> None:
        if self.max_length is None:
            return
        too_long = [i for i, prompt in enumerate(prompts) if len(prompt) + new_tokens > self.max_length]
        if too_long:
            first = too_long[0]
            raise InputError(
                f"{len(too_long)} of {len(prompts)} prompts are too long: with {new_tokens} new tokens they pass the "
                f"model's {self.max_length} tokens (first: prompt {first + 1}, {len(prompts[first])} tokens); shorten "
                "them, or lower max_new_tokens in params.yaml"
            )


def merged(parts: Sequence[dict[int, Any]]) -> list[Any]:
    """Return the values of disjoint dictionaries of row numbers, in the order of the rows."""
    rows = {i: value for part in parts for i, value in part.items()}
    return [rows[i] for i in range(len(rows))]
