"""The base model, and the tokenizer that every model of the pipeline shares.

A model directory holds full weights (`config.json`, the base) or an adapter (`adapter_config.json`), with the
tokenizer, the chat template and `model_card.json`.
"""

import shutil
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from align.core.errors import InputError
from align.core.files import REBUILD
from align.models.linears import use_onednn
from align.models.loading import load_weights, reading_model
from align.models.quantization import quantized, settle
from align.run.runtime import RuntimeSettings

PROBE = "What is 2 + 3?"


def load_tokenizer(model_dir: Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer and check it; see `check_tokenizer`."""
    if not (model_dir / "tokenizer.json").is_file():
        raise InputError(f"{model_dir}: holds no tokenizer (tokenizer.json); {REBUILD}")
    with reading_model(f"{model_dir}: cannot load the tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model_dir, trust_remote_code=False)
    check_tokenizer(tokenizer, str(model_dir))
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise `InputError` unless a tokenizer has an EOS token, a pad token that is not EOS, and a chat template."""
    if tokenizer.eos_token_id is None:
        advice = 'set base_model.eos_token, for example to "<|endoftext|>"'
        raise InputError(f"{name}: the tokenizer has no EOS token, so no reply would end; {advice}")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        problem = "is the EOS token" if tokenizer.pad_token_id is not None else "is missing"
        raise InputError(f'{name}: the pad token {problem}; set base_model.pad_token, for example to "<|pad|>"')
    advice = "set base_model.chat_template, for example to chatml"
    if not tokenizer.chat_template:
        raise InputError(f"{name}: the tokenizer has no chat template; {advice}")
    probe = [{"role": "user", "content": PROBE}]
    with reading_model(f"{name}: the chat template fails", advice):
        text = tokenizer.apply_chat_template(probe, tokenize=False, add_generation_prompt=True)
    if PROBE not in str(text):
        raise InputError(f"{name}: the chat template omits the user's message; {advice}")


def load_base(
    base_dir: Path, runtime: RuntimeSettings, auto_class: Any = AutoModelForCausalLM, **kwargs: Any
) -> PreTrainedModel:
    """Load the base model onto `runtime.device` in eval mode, in `runtime.dtype` or packed (`runtime.quantization`)."""
    what = f"{base_dir}: cannot load the model"
    kwargs |= quantized(runtime)
    model = load_weights(base_dir, what, REBUILD, auto_class, dtype=runtime.torch_dtype, **kwargs)
    nn.Module.to(model, runtime.torch_device)  # the model's own `to` refuses packed weights
    use_onednn(model)
    settle(model)
    model.eval()
    return model


def copy_tokenizer(source: Path, out_dir: Path) -> None:
    """Copy the tokenizer's files from one model directory to another."""
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        if (source / name).exists():
            shutil.copyfile(source / name, out_dir / name)
