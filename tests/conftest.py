"""A tiny random Llama with a small tokenizer, built once a session; nothing here reaches the network."""

import os
import subprocess

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, hence before the rest
os.environ.setdefault("ALIGN_DEVICE_LOCK", "0")  # on a machine with a GPU the stages that tests start would wait for us

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from peft import get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from align.models.adapters import LoraSettings, save_adapter
from align.models.base import load_base
from align.models.stack import AdapterStack
from align.run.runtime import RuntimeSettings
from stages.base_model import BaseModelSettings, load
from tests.committed import COMMITTED, EDITABLE, archive
from tests.committed import REPOSITORY as REPOSITORY

torch.set_num_threads(1)  # tiny matrices: a second thread only waits
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


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


def build_tiny_source(folder: Path) -> Path:
    """Write the model to `folder`; the same bytes every time."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    corpus = (COMMITTED / "data/seed/instructions.jsonl").read_text(encoding="utf-8").splitlines()[:60]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", bos_token="<|im_start|>")
    wrapped.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(wrapped),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.2,  # large enough that two prompts get visibly different answers
        tie_word_embeddings=True,
        bos_token_id=wrapped.bos_token_id,
        eos_token_id=wrapped.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


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


def write_adapter(
    folder: Path,
    base_dir: Path,
    runtime: RuntimeSettings,
    seed: int,
    head: bool = False,
    layers: list[int] | None = None,
) -> Path:
    """Write a random LoRA adapter (with a score head, if asked) over a base to `folder`, which is returned."""
    torch.manual_seed(seed)
    modules = "all-linear" if layers is None else ["q_proj", "v_proj", "down_proj"]
    lora = LoraSettings(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=modules, layers_to_transform=layers)
    if head:
        base = load_base(base_dir, runtime, AutoModelForSequenceClassification, num_labels=1)
        model = get_peft_model(base, lora.config(task_type="SEQ_CLS", modules_to_save=["score"]))
    else:
        base = load_base(base_dir, runtime, AutoModelForCausalLM)
        model = get_peft_model(base, lora.config(task_type="CAUSAL_LM"))
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            torch.nn.init.normal_(parameter, std=0.1)
    save_adapter(model, folder)
    return folder


def tiny_gpt2(tokenizer: PreTrainedTokenizerBase) -> GPT2LMHeadModel:
    """A model with learned positions: a row that its padding moves gets other logits, which rotary ones hide."""
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=128,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return GPT2LMHeadModel(config)


def embeddings(model: PreTrainedModel) -> Tensor:
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight


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
