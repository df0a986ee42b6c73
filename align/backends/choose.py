"""Inference backends by name, `generation.backend` in params.yaml."""

import importlib.util
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from align.core.errors import InputError
from align.core.files import read_json
from align.core.params import SECRET, Settings
from align.generation.generator import Generator
from align.generation.local import BFloat16Generator, TorchGenerator, this_process
from align.models.full import is_full
from align.models.stack import AdapterStack
from align.run.locks import hold_devices
from align.run.runtime import RuntimeSettings
from align.run.work import Work

BASE = Path("models/base")


class OpenAISettings(Settings):
    """`generation.openai`: a server with OpenAI's completions API; its key is in OPENAI_API_KEY."""

    base_url: str
    model: str
    dialect: Literal["vllm", "openai"]
    concurrency: int = Field(ge=1)
    timeout: float = Field(gt=0)
    max_retries: int = Field(ge=0)

    @field_validator("base_url")
    @classmethod
    def _address_without_a_key(cls, value: str) -> str:
        # params.yaml and dvc.lock are in git: no secrets.
        if not re.fullmatch(r"https?://[^\s@?#/]+(/[^\s@?#]*)?", value):
            raise PydanticCustomError(
                SECRET, "an http(s) address without user, password or query; a key goes into OPENAI_API_KEY"
            )
        return value

    @field_validator("model")
    @classmethod
    def _one_placeholder(cls, value: str) -> str:
        if set("{}") & set(value.replace("{name}", "")):
            raise ValueError("a name in which {name} is the only thing in braces")
        return value


class GenerationSettings(Settings):
    """Section `generation` of params.yaml."""

    backend: Literal["transformers", "bfloat16", "vllm", "openai"]
    max_batch_tokens: int | None = Field(ge=1)
    launch: str  # read by dvc.yaml
    openai: OpenAISettings


@contextmanager
def _transformers(
    settings: GenerationSettings,
    runtime: RuntimeSettings,
    name: str,
    work: Work | None,
    kind: type[TorchGenerator] = TorchGenerator,
) -> Iterator[Generator]:
    _hold_devices(runtime, work)
    process = this_process()
    folder = Path("models") / name
    stack = AdapterStack(folder if is_full(folder) else BASE, runtime)
    stack.add(name, folder)
    with stack.using(name) as model:
        yield kind(model, stack.tokenizer, runtime.batch_size, settings.max_batch_tokens, process, work, name)
    if process is not None:
        process.destroy_process_group()


def _bfloat16(
    settings: GenerationSettings, runtime: RuntimeSettings, name: str, work: Work | None
) -> AbstractContextManager[Generator]:
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    plain = runtime.dtype == "float32" and runtime.quantization == "none"
    if runtime.torch_device.type != "cpu" or not plain or not fast:
        weights = runtime.dtype if runtime.quantization == "none" else runtime.quantization
        raise InputError(
            "params.yaml: generation.backend: bfloat16 is for runtime.dtype float32 on a CPU that multiplies bfloat16 "
            f"(here: {weights} on {runtime.torch_device}{'' if fast else ', which does not'}); set transformers"
        )
    return _transformers(settings, runtime, name, work, BFloat16Generator)


@contextmanager
def _vllm(settings: GenerationSettings, runtime: RuntimeSettings, name: str, work: Work | None) -> Iterator[Generator]:
    if (adapter := Path("models") / name / "adapter_config.json").exists() and read_json(adapter).get("use_dora"):
        raise InputError(
            f"params.yaml: generation.backend: vllm cannot run {adapter.parent}, a DoRA adapter; set transformers, or "
            "lora.use_dora: false"
        )
    _require("vllm")
    os.environ.pop("TORCHDYNAMO_DISABLE", None)  # `stages` sets it, but vLLM compiles its models
    from align.backends.vllm import VLLMGenerator  # noqa: PLC0415 (an extra)

    _hold_devices(runtime, work)
    yield VLLMGenerator(BASE, Path("models") / name, runtime, work)


@contextmanager
def _openai(
    settings: GenerationSettings, runtime: RuntimeSettings, name: str, work: Work | None
) -> Iterator[Generator]:
    _require("openai")
    from align.backends.openai import OpenAIGenerator  # noqa: PLC0415 (an extra)

    yield OpenAIGenerator(BASE, name, **settings.openai.model_dump(), work=work)


def _hold_devices(runtime: RuntimeSettings, work: Work | None) -> None:
    if work is not None:  # a stage
        hold_devices(work.stage, runtime)


def _require(extra: str) -> None:
    if importlib.util.find_spec(extra) is None:
        raise InputError(
            f"params.yaml: generation.backend: {extra} needs a package that is not installed; "
            f"run `pip install -e .[{extra}]`"
        )


BACKENDS: dict[str, Callable[..., AbstractContextManager[Generator]]] = {
    "transformers": _transformers,
    "bfloat16": _bfloat16,
    "vllm": _vllm,
    "openai": _openai,
}


@contextmanager
def open_generator(
    settings: GenerationSettings, runtime: RuntimeSettings, name: str, work: Work | None = None
) -> Iterator[Generator]:
    """Yield models/<name>, or its counterpart on a server, as a generator of `settings.backend`."""
    with BACKENDS[settings.backend](settings, runtime, name, work) as generator:
        yield generator
