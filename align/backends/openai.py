"""The OpenAI backend: any server with OpenAI's completions API, such as a fleet of vLLM servers.

Prompts are rendered here, so the server needs no chat template. OPENAI_API_KEY holds the key, if the server needs one.
"""

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Literal

from openai import APIConnectionError, APIStatusError, OpenAI
from openai.types import Completion as Reply
from transformers import AutoConfig

from align.core.errors import InputError
from align.generation.generator import Completion, Generator, Progress, as_row
from align.generation.sampling import SamplingParams
from align.models.base import load_tokenizer
from align.models.tokenization import encode_completion
from align.run.runtime import row_seed
from align.run.work import Rows, Work

MAX_SEED = 2**31 - 1  # some servers store seeds in 32 bits


class OpenAIGenerator(Generator):
    """A model on a server.

    Args:
        base: directory of the base model, whose tokenizer the server's model shares.
        name: the pipeline's name of the model.
        base_url: the server's address, including `/v1`.
        model: the server's name of the model; `{name}` in it becomes `name`.
        dialect: `vllm` exchanges token ids and requests the log-probabilities of given tokens; `openai` exchanges text,
            and looks tokens up by their text among the most likely ones.
        concurrency: parallel requests.
        timeout: seconds per request.
        max_retries: of a request that failed (no connection, timeout, 429, 5xx), each after a longer pause.
    """

    backend = "openai"

    def __init__(
        self,
        base: Path,
        name: str,
        *,
        base_url: str,
        model: str,
        dialect: Literal["vllm", "openai"],
        concurrency: int,
        timeout: float,
        max_retries: int,
        work: Work | None = None,
    ) -> None:
        super().__init__(load_tokenizer(base), AutoConfig.from_pretrained(base).max_position_embeddings, work, name)
        self.base_url, self.dialect, self.concurrency = base_url, dialect, concurrency
        self.model = model.format(name=name)
        key = os.environ.get("OPENAI_API_KEY", "none")  # the client requires one; a local server may not
        self.client = OpenAI(base_url=base_url, api_key=key, timeout=timeout, max_retries=max_retries)

    def _generate(
        self,
        prompts: Sequence[list[int]],
        sampling: SamplingParams,
        seeds: Sequence[int],
        n: int,
        progress: Progress,
        rows: Rows,
    ) -> None:
        def ask(request: tuple[list[int], int]) -> list[Any]:
            prompt, seed = request
            extra: dict[str, Any] = {}
            if self.dialect == "vllm":
                eos = self.tokenizer.eos_token_id
                extra = {"return_token_ids": True, "ignore_eos": True, "stop_token_ids": [eos]}
            reply = self._ask(
                prompt,
                max_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=seed % MAX_SEED,
                extra_body=extra,
            )
            choice = reply.choices[0]
            ids = getattr(choice, "token_ids", None)
            if self.dialect == "vllm" and ids:
                return as_row(self.completion(ids))
            reason: Literal["stop", "length"] = "length" if choice.finish_reason == "length" else "stop"
            return as_row(Completion(encode_completion(self.tokenizer, choice.text, reason), choice.text, reason))

        # One request per sample, so that each has its own seed.
        requests = [(prompt, row_seed(seed, k)) for prompt, seed in zip(prompts, seeds, strict=True) for k in range(n)]
        self._map(ask, requests, rows, lambda row: progress.update(1, len(row[0])))

    def _next_token_logprobs(
        self, prompts: Sequence[list[int]], token_ids: Sequence[int], progress: Progress, rows: Rows
    ) -> None:
        def ask(prompt: list[int]) -> list[float]:
            extra: dict[str, Any] = {}
            if self.dialect == "vllm":
                extra = {"logprob_token_ids": list(token_ids), "return_tokens_as_token_ids": True}
            reply = self._ask(prompt, max_tokens=1, temperature=0.0, logprobs=max(5, len(token_ids)), extra_body=extra)
            logprobs = reply.choices[0].logprobs
            if logprobs is None or not logprobs.top_logprobs:
                raise InputError(
                    f"{self.base_url}: the server returns no log-probabilities, which the judge needs; "
                    "set judge.mode to sample"
                )
            names = [
                f"token_id:{token}" if self.dialect == "vllm" else str(self.tokenizer.decode([token]))
                for token in token_ids
            ]
            # Servers list only the most likely tokens; treat the others as impossible.
            return [logprobs.top_logprobs[0].get(name, -math.inf) for name in names]

        self._map(ask, prompts, rows, lambda _: progress.update(1, 1))

    def _ask(self, prompt: list[int], **settings: Any) -> Reply:
        sent = prompt if self.dialect == "vllm" else self._text(prompt)
        try:
            reply: Reply = self.client.completions.create(model=self.model, prompt=sent, **settings)
            return reply
        except APIConnectionError as error:  # a timeout among them
            raise InputError(
                f"generation.openai.base_url: {self.base_url}: {error} ({error.__cause__}); start the server, or raise "
                "generation.openai.timeout or max_retries"
            ) from None
        except APIStatusError as error:
            raise InputError(
                f"generation.openai: {self.base_url} answered {error.status_code} for model {self.model!r}: "
                f"{' '.join(error.message.split())[:300]}"
            ) from None

    def _text(self, prompt: list[int]) -> str:
        """Return a prompt as text, if a server that tokenizes it gets the same ids."""
        text = str(self.tokenizer.decode(prompt))
        if self.tokenizer(text)["input_ids"] != prompt:
            raise InputError(
                "generation.openai.dialect: a prompt sent as text would reach the model as different tokens (perhaps "
                "the tokenizer adds a BOS); use a server that accepts token ids, and dialect vllm"
            )
        return text

    def _map(self, ask: Callable[[Any], Any], requests: Sequence[Any], rows: Rows, done: Callable[[Any], None]) -> None:
        """Finish the missing rows, each as soon as its reply arrives."""
        with ThreadPoolExecutor(self.concurrency) as pool:
            futures = {pool.submit(ask, request): i for i, request in enumerate(requests) if i not in rows}
            try:
                for future in as_completed(futures):
                    rows.finish({futures[future]: future.result()})
                    done(future.result())
            except BaseException:
                pool.shutdown(cancel_futures=True)  # drop requests that have not started
                raise
