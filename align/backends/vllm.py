"""The vLLM backend: continuous batching and prefix caching on CUDA, in this process, with an unmerged adapter.

vLLM pins torch and transformers, so it needs a separate environment (`pip install -e .[vllm]`). Written for vLLM 0.33.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from transformers import AutoConfig
from vllm import LLM, RequestOutput
from vllm import SamplingParams as VLLMSamplingParams
from vllm.lora.request import LoRARequest

from align.core.files import read_json
from align.generation.generator import Generator, Progress, as_row
from align.generation.sampling import SamplingParams
from align.models.base import load_tokenizer
from align.run.runtime import RuntimeSettings, row_seed
from align.run.work import Rows, Work

CHUNK = 2048  # requests per call: enough to keep vLLM busy, few enough to lose little when killed


class VLLMGenerator(Generator):
    """A base with one adapter in vLLM, or the model itself if `model_dir` holds full weights."""

    backend = "vllm"

    def __init__(self, base: Path, model_dir: Path, runtime: RuntimeSettings, work: Work | None = None) -> None:
        length = AutoConfig.from_pretrained(base).max_position_embeddings
        super().__init__(load_tokenizer(base), length, work, model_dir.name)
        adapter = model_dir / "adapter_config.json"
        self.lora = LoRARequest(model_dir.name, 1, str(model_dir.resolve())) if adapter.exists() else None
        rank = read_json(adapter)["r"] if self.lora else 16
        self.llm = LLM(
            str(base if self.lora else model_dir),
            dtype=runtime.dtype,
            enable_lora=self.lora is not None,
            max_lora_rank=rank,
            max_logprobs=128,
        )

    def _generate(
        self,
        prompts: Sequence[list[int]],
        sampling: SamplingParams,
        seeds: Sequence[int],
        n: int,
        progress: Progress,
        rows: Rows,
    ) -> None:
        def settings(number: int) -> VLLMSamplingParams:
            return VLLMSamplingParams(
                max_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                # One request per sample, so that each has its own seed; prefix caching reads their prompt once.
                seed=row_seed(seeds[number // n], number % n),
                stop_token_ids=[self.tokenizer.eos_token_id],
                ignore_eos=True,  # generation_config.json may name other EOS tokens too
                detokenize=False,
            )

        for numbers in _chunks(rows, len(prompts) * n):
            outputs = self._run([prompts[k // n] for k in numbers], [settings(k) for k in numbers])
            completions = [self.completion(list(output.outputs[0].token_ids)) for output in outputs]
            rows.finish(dict(zip(numbers, map(as_row, completions), strict=True)))
            progress.update(len(completions), sum(len(completion.token_ids) for completion in completions))

    def _next_token_logprobs(
        self, prompts: Sequence[list[int]], token_ids: Sequence[int], progress: Progress, rows: Rows
    ) -> None:
        settings = VLLMSamplingParams(
            max_tokens=1, temperature=0.0, logprob_token_ids=list(token_ids), detokenize=False
        )
        for numbers in _chunks(rows, len(prompts)):
            chunk = [prompts[i] for i in numbers]
            finished = {}
            for number, output in zip(numbers, self._run(chunk, [settings] * len(chunk)), strict=True):
                logprobs = output.outputs[0].logprobs
                assert logprobs is not None
                finished[number] = [logprobs[0][token].logprob for token in token_ids]
            rows.finish(finished)
            progress.update(len(chunk), sum(map(len, chunk)))

    def _run(self, prompts: Sequence[list[int]], settings: list[VLLMSamplingParams]) -> list[RequestOutput]:
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs: list[RequestOutput] = self.llm.generate(inputs, settings, lora_request=self.lora)
        return outputs


def _chunks(rows: Rows, total: int) -> Iterator[list[int]]:
    """Yield the missing rows in chunks: vLLM returns when a whole call is finished."""
    missing = [number for number in range(total) if number not in rows]
    for first in range(0, len(missing), CHUNK):
        yield missing[first : first + CHUNK]
