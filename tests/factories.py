"""Tiny models with random weights: built in a moment, the same bytes every time."""

from pathlib import Path

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
from align.run.runtime import RuntimeSettings
from tests.committed import COMMITTED

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


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
