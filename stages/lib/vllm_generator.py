"""The vLLM backend: continuous batching and prefix caching on CUDA, in this process, with the adapter loaded as it is.

vLLM pins its own torch and transformers, so this is for an environment of its own (`pip install -e .[vllm]`); written
to the interface of vLLM 0.33.
"""

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoConfig
from vllm import LLM, RequestOutput
from vllm import SamplingParams as VLLMSamplingParams
from vllm.lora.request import LoRARequest

from stages.lib.files import read_json
from stages.lib.generation import Completion, Generator, Progress
from stages.lib.models import load_tokenizer
from stages.lib.runtime import RuntimeSettings, row_seed
from stages.lib.sampling import SamplingParams


class VLLMGenerator(Generator):
    """A base and one adapter (or none, where `model_dir` is the base itself), held by vLLM."""

    backend = "vllm"

    def __init__(self, base: Path, model_dir: Path, runtime: RuntimeSettings) -> None:
        super().__init__(load_tokenizer(base), AutoConfig.from_pretrained(base).max_position_embeddings)
        adapter = model_dir / "adapter_config.json"
        self.lora = LoRARequest(model_dir.name, 1, str(model_dir.resolve())) if adapter.exists() else None
        rank = read_json(adapter)["r"] if self.lora else 16
        self.llm = LLM(
            str(base), dtype=runtime.dtype, enable_lora=self.lora is not None, max_lora_rank=rank, max_logprobs=128
        )

    def _generate(
        self, prompts: Sequence[list[int]], sampling: SamplingParams, seeds: Sequence[int], n: int, progress: Progress
    ) -> list[list[Completion]]:
        # A request for each sample, so that each has its own seed; the cache of prefixes reads their prompt once.
        requests = [(prompt, row_seed(seed, k)) for prompt, seed in zip(prompts, seeds, strict=True) for k in range(n)]
        settings = [
            VLLMSamplingParams(
                max_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=seed,
                stop_token_ids=[self.tokenizer.eos_token_id],
                ignore_eos=True,  # generation_config.json may name more tokens than the tokenizer's EOS
                detokenize=False,
            )
            for _, seed in requests
        ]
        outputs = self._run([prompt for prompt, _ in requests], settings)
        rows = [self.completion(list(output.outputs[0].token_ids)) for output in outputs]
        progress.update(len(rows), sum(len(row.token_ids) for row in rows))
        return [rows[i : i + n] for i in range(0, len(rows), n)]

    def _next_token_logprobs(
        self, prompts: Sequence[list[int]], token_ids: Sequence[int], progress: Progress
    ) -> list[list[float]]:
        settings = VLLMSamplingParams(
            max_tokens=1, temperature=0.0, logprob_token_ids=list(token_ids), detokenize=False
        )
        outputs = self._run(prompts, [settings] * len(prompts))
        rows = []
        for output in outputs:
            logprobs = output.outputs[0].logprobs
            assert logprobs is not None
            rows.append([logprobs[0][token].logprob for token in token_ids])
        progress.update(len(rows), sum(map(len, prompts)))
        return rows

    def _run(self, prompts: Sequence[list[int]], settings: list[VLLMSamplingParams]) -> list[RequestOutput]:
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs: list[RequestOutput] = self.llm.generate(inputs, settings, lora_request=self.lora)
        return outputs
