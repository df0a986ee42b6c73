"""Fixtures: tiny random models, built once per session, and a checkout of HEAD. Nothing here reaches the network."""

import os
import subprocess

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, hence before the rest
os.environ.setdefault("ALIGN_DEVICE_LOCK", "0")  # on a machine with a GPU the stages that tests start would wait for us

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch

from align.models.stack import AdapterStack
from align.run.runtime import RuntimeSettings
from stages.base_model import BaseModelSettings, load
from tests.committed import EDITABLE, REPOSITORY, archive
from tests.factories import build_tiny_source, embeddings, write_adapter

torch.set_num_threads(1)  # tiny matrices: a second thread only waits


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """HEAD's version of the whole project; skips where params, data, recipes or results differ from it."""
    command = ["git", "diff", "--name-only", "HEAD", "--", *EDITABLE, "README.md"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if modified := result.stdout.split():
        pytest.skip(f"compares committed files, and these have uncommitted changes: {', '.join(modified)}")
    folder = tmp_path_factory.mktemp("head")
    if not archive(folder):
        pytest.skip("compares committed files, and this is no git repository")
    return folder


@pytest.fixture(scope="session")
def runtime() -> RuntimeSettings:
    """Settings of `runtime` for a CPU."""
    return RuntimeSettings(
        device="cpu", dtype="float32", quantization="none", optim="adamw_torch", num_threads=2, batch_size=8
    )


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder such as a hub download: tiny Llama with random weights, tokenizer without pad token or chat template."""
    return build_tiny_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="session")
def tiny_base(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model directory as stage base_model writes it."""
    settings = BaseModelSettings(
        source=str(tiny_source), revision=None, pad_token="<|endoftext|>", chat_template="chatml"
    )
    model, tokenizer = load(settings, torch.float32)
    folder = tmp_path_factory.mktemp("models") / "base"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def make_adapter(tiny_base: Path, runtime: RuntimeSettings, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a random LoRA adapter (with a score head, if asked) and returns its directory."""

    def make(name: str, seed: int, head: bool = False, layers: list[int] | None = None) -> Path:
        return write_adapter(tmp_path / name, tiny_base, runtime, seed, head, layers)

    return make


@pytest.fixture
def make_stack(
    tiny_base: Path, runtime: RuntimeSettings, make_adapter: Callable[..., Path]
) -> Callable[..., AdapterStack]:
    """Return a function that builds a stack for PPO: policy and reference equal, reward and value with a head."""

    def make(
        reference: Path | None = None,
        layers: list[int] | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        **settings: str,
    ) -> AdapterStack:
        policy = make_adapter("policy", 1, layers=layers)
        reward = make_adapter("reward", 2, head=True, layers=layers)
        stack = AdapterStack(tiny_base, runtime.model_copy(update={"dtype": dtype, **settings}))
        with torch.no_grad():  # an EOS that is likely now and then: some responses end, some do not
            embeddings(stack.causal_lm)[stack.tokenizer.eos_token_id] *= 3
        for name, folder in {
            "policy": policy,
            "reference": reference or policy,
            "reward": reward,
            "value": reward,
        }.items():
            stack.add(name, folder)
        return stack

    return make
