"""Models on disk and in memory: a base with full weights, and LoRA adapters over it in PEFT's layout.

A model directory holds either full weights (`config.json`, the base) or an adapter (`adapter_config.json`), with the
tokenizer, the chat template and `model_card.json`. Weights are safetensors: nothing is unpickled, and no code that a
model brings along is run.
"""

import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from pydantic import Field, model_validator
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from align.core.errors import InputError, quoted
from align.core.files import REBUILD, sha256, write_json
from align.models.loading import (
    ADAPTER_FILE,
    load_adapter_config,
    load_adapter_weights,
    load_score_bias,
    load_weights,
    reading_model,
)
from align.models.linears import use_onednn
from align.core.params import Params, Settings
from align.run.provenance import environment
from align.models.quantization import quantized, settle
from align.run.runtime import RuntimeSettings

HEAD_KEY = "base_model.model.score.weight"
SCORE_FILE = "score_bias.json"
PROBE = "What is 2 + 3?"


class LoraSettings(Settings):
    """Section `lora` of params.yaml, in PEFT's words; every adapter of the pipeline has this shape."""

    r: int = Field(ge=1)
    lora_alpha: int = Field(ge=1)
    lora_dropout: float = Field(ge=0, lt=1)
    target_modules: str | list[str]
    layers_to_transform: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None

    @model_validator(mode="after")
    def _modules_by_name(self) -> Self:
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise ValueError("target_modules by name, as a list, where layers_to_transform is set")
        return self

    def config(self, **kwargs: Any) -> LoraConfig:
        """Return PEFT's configuration."""
        return LoraConfig(**self.model_dump(), **kwargs)


def load_tokenizer(model_dir: Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer and check what every stage relies on: EOS, a pad token that is not EOS, a chat template."""
    if not (model_dir / "tokenizer.json").is_file():
        raise InputError(f"{model_dir}: holds no tokenizer (tokenizer.json); {REBUILD}")
    with reading_model(f"{model_dir}: cannot load the tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model_dir, trust_remote_code=False)
    check_tokenizer(tokenizer, str(model_dir))
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise `InputError` with the param that mends it if a tokenizer cannot be used."""
    if tokenizer.eos_token_id is None:
        advice = 'set base_model.eos_token, for example to "<|endoftext|>"'
        raise InputError(f"{name}: the tokenizer has no EOS token, without which no reply ends; {advice}")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        found = "is the EOS token" if tokenizer.pad_token_id is not None else "is missing"
        raise InputError(f'{name}: the pad token {found}; set base_model.pad_token, for example to "<|pad|>"')
    advice = "set base_model.chat_template, for example to chatml"
    if not tokenizer.chat_template:
        raise InputError(f"{name}: the tokenizer has no chat template; {advice}")
    probe = [{"role": "user", "content": PROBE}]
    with reading_model(f"{name}: the chat template fails", advice):
        text = tokenizer.apply_chat_template(probe, tokenize=False, add_generation_prompt=True)
    if PROBE not in str(text):
        raise InputError(f"{name}: the chat template leaves out what the user says; {advice}")


def load_base(
    base_dir: Path, runtime: RuntimeSettings, auto_class: Any = AutoModelForCausalLM, **kwargs: Any
) -> PreTrainedModel:
    """Load the base model onto `runtime.device`, in eval mode: in `runtime.dtype`, or packed (`runtime.quantization`).

    On disk its weights are full ones in either case.
    """
    what = f"{base_dir}: cannot load the model"
    packing = quantized(runtime)
    model = load_weights(base_dir, what, REBUILD, auto_class, dtype=runtime.torch_dtype, **packing, **kwargs)
    nn.Module.to(model, runtime.torch_device)
    use_onednn(model)
    settle(model)
    model.eval()
    return model


def new_adapter(model: PreTrainedModel, lora: LoraSettings, **kwargs: Any) -> PeftModel:
    """Return `model` with a new adapter of the shape that section `lora` says."""
    count = model.config.get_text_config().num_hidden_layers
    if beyond := [layer for layer in lora.layers_to_transform or [] if layer >= count]:
        raise InputError(
            f"params.yaml: lora.layers_to_transform: the model has {count} layers, 0 to {count - 1}, and none "
            f"{quoted(beyond[0])}; name others, or set null for all"
        )
    with reading_model("params.yaml: lora.target_modules", "name modules of this model, or set all-linear"):
        adapted = get_peft_model(model, lora.config(**kwargs))
    assert isinstance(adapted, PeftModel)
    return adapted


@dataclass(frozen=True)
class ScoreHead:
    """A reward model's head: the score of a final hidden state, centred by `bias`."""

    weight: Tensor  # (1, H), float32
    bias: float

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return the scores (...) of hidden states (..., H), in float32."""
        return (hidden.float() * self.weight).sum(-1) + self.bias  # no matmul: autocast would round it to bfloat16


class Heads(dict[str, ScoreHead]):
    """The heads of a stack's reward models, by name."""

    def __missing__(self, name: str) -> ScoreHead:
        raise InputError(
            f"the model that stands for {quoted(name)} has no score head; give a reward model, such as models/reward"
        )


class AdapterStack:
    """One base in memory and any number of named LoRA adapters over it, of which one (or none) is active at a time.

    `stack.add("policy", Path("models/m1"))` loads an adapter, or stands for the bare base where the directory holds
    the base itself; inside `with stack.using("policy")` the model computes with it.
    """

    def __init__(self, base_dir: Path, runtime: RuntimeSettings) -> None:
        self.tokenizer = load_tokenizer(base_dir)
        self.causal_lm = load_base(base_dir, runtime).requires_grad_(False)
        self.compute_dtype, self.optim = runtime.compute_dtype, runtime.optim
        self.device = self.causal_lm.device
        self.heads = Heads()
        self._adapters: dict[str, bool] = {}  # name -> whether there is an adapter of this name
        self._peft: PeftModel | None = None
        count = self.causal_lm.config.get_text_config().num_hidden_layers
        # Its decoder layers, in order: the first list of as many modules as the configuration counts layers.
        self.layers = next(
            module for module in self.causal_lm.modules() if isinstance(module, nn.ModuleList) and len(module) == count
        )

    def add(self, name: str, model_dir: Path) -> None:
        """Load `model_dir` as `name`; a reward model's head, with the bias that centres it, lands in `heads[name]`."""
        if not (model_dir / "adapter_config.json").exists():
            if not (model_dir / "config.json").exists():
                raise InputError(f"{model_dir}: holds no model (adapter_config.json or config.json); run `dvc repro`")
            self._adapters[name] = False
            return
        config = load_adapter_config(model_dir)
        # The stack runs every adapter over the causal LM: heads are kept apart, in `heads`.
        config.task_type, config.modules_to_save, config.inference_mode = None, None, False
        config.base_model_name_or_path = None  # PEFT warns where this differs from the base's path
        state = load_adapter_weights(model_dir)
        head = state.pop(HEAD_KEY, None)
        if head is not None:
            # A reward model from elsewhere has no bias: its scores are not centred.
            bias = load_score_bias(model_dir / SCORE_FILE) if (model_dir / SCORE_FILE).exists() else 0.0
            if head.shape != (1, self.causal_lm.config.get_text_config().hidden_size):
                raise InputError(f"{model_dir / ADAPTER_FILE}: its score head does not fit the base model; {REBUILD}")
            self.heads[name] = ScoreHead(head.to(self.device, torch.float32), bias)
        with reading_model(f"{model_dir / 'adapter_config.json'}: does not fit the base model"):
            if self._peft is None:
                self._peft = get_peft_model(self.causal_lm, config, adapter_name=name)
            else:
                self._peft.add_adapter(name, config)
        put_adapter_weights(self._peft, state, name, model_dir / ADAPTER_FILE)
        self._peft.eval()
        for parameter in self.parameters(name):
            parameter.requires_grad_(False)
        self._adapters[name] = True

    @contextmanager
    def using(self, name: str) -> Iterator[PreTrainedModel]:
        """Yield the causal LM with adapter `name` active; parameters keep the `requires_grad` they have.

        Over a base in bfloat16 the adapters, whose weights are float32, compute in bfloat16 too (autocast): casts to
        float32 and back would cost a quarter of the time.
        """
        half = self.causal_lm.dtype == torch.bfloat16
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            if self._peft is None:
                yield self.causal_lm
            elif not self._adapters[name]:
                with self._peft.disable_adapter():
                    yield self.causal_lm
            else:
                flags = [(parameter, parameter.requires_grad) for parameter in self._peft.parameters()]
                self._peft.set_adapter(name, inference_mode=True)
                for parameter, flag in flags:
                    parameter.requires_grad_(flag)
                yield self.causal_lm

    def parameters(self, name: str, from_layer: int = 0) -> list[nn.Parameter]:
        """Return the parameters of adapter `name`, in the model's order, without those of the layers before one."""
        assert self._peft is not None
        below = {id(parameter) for layer in self.layers[:from_layer] for parameter in layer.parameters()}
        named = self._peft.named_parameters()
        return [parameter for key, parameter in named if _is_of(key, name) and id(parameter) not in below]

    def first_layer(self, name: str) -> int:
        """Return the lowest layer that adapter `name` changes: what enters it is the same as in the bare base."""
        if not self._adapters[name]:
            return len(self.layers)
        adapted = {id(parameter) for parameter in self.parameters(name)}
        depths = [i for i, layer in enumerate(self.layers) if adapted & {id(p) for p in layer.parameters()}]
        inside = {id(parameter) for layer in self.layers for parameter in layer.parameters()}
        return depths[0] if depths and adapted <= inside else 0

    @contextmanager
    def recording(self, layers: Collection[int]) -> Iterator[dict[int, Tensor]]:
        """Yield a dictionary that holds, after each forward, the states (B, T, H) that entered each of `layers`."""
        states: dict[int, Tensor] = {}

        def note(layer: int, *arguments: Any) -> None:
            _, positional, named = arguments
            states[layer] = positional[0] if positional else named["hidden_states"]

        hooks = [self.layers[i].register_forward_pre_hook(partial(note, i), with_kwargs=True) for i in set(layers)]
        try:
            yield states
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def entering(self, layer: int, states: Tensor) -> Iterator[None]:
        """Let forwards begin at `layer` with `states` (B, T, H), as `recording` found them; those below do not run."""
        below = list(self.layers[:layer])
        try:
            for i in range(layer):
                self.layers[i] = _Recorded(states)
            yield
        finally:
            for i, module in enumerate(below):
                self.layers[i] = module

    @contextmanager
    def checkpointing(self) -> Iterator[None]:
        """Let forwards keep only what enters each layer; backwards compute the rest anew, with the adapter then active.

        transformers has it for models in training mode alone, where dropout is on.
        """
        plain = list(self.layers)
        try:
            for i, module in enumerate(plain):
                self.layers[i] = _Checkpointed(module)
            yield
        finally:
            for i, module in enumerate(plain):
                self.layers[i] = module

    def save(self, name: str, out_dir: Path) -> None:
        """Write adapter `name` to `out_dir`; see `save_adapter`."""
        assert self._peft is not None
        save_adapter(self._peft, out_dir, name)


class _Recorded(nn.Module):
    """Stands for the layers below one: gives what they gave before."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.states


class _Checkpointed(nn.Module):
    """Stands for a layer: the same, but what it computes inside is not kept for the backward pass."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        states: Tensor = checkpoint(self.layer, *args, use_reentrant=False, **kwargs)
        return states


def put_adapter_weights(model: PeftModel, state: dict[str, Tensor], name: str, path: Path) -> None:
    """Set the weights of adapter `name` to those that `path` held; all of them, and no others."""
    try:
        result: Any = set_peft_model_state_dict(model, state, adapter_name=name)
        fits = not result.unexpected_keys and not any(_is_of(key, name) for key in result.missing_keys)
    except RuntimeError:  # torch's word for a tensor of another shape
        fits = False
    if not fits:
        raise InputError(f"{path}: does not fit the base model; rebuild it with `dvc repro`")


def continue_adapter(model: PreTrainedModel, model_dir: Path) -> PeftModel:
    """Return `model` with the adapter of `model_dir`, to be trained on."""
    config = load_adapter_config(model_dir)
    config.inference_mode, config.base_model_name_or_path = False, None
    with reading_model(f"{model_dir / 'adapter_config.json'}: does not fit the base model"):
        adapted = get_peft_model(model, config)
    assert isinstance(adapted, PeftModel)
    put_adapter_weights(adapted, load_adapter_weights(model_dir), "default", model_dir / ADAPTER_FILE)
    return adapted


def save_adapter(model: PeftModel, out_dir: Path, name: str = "default") -> None:
    """Write one adapter in PEFT's layout, byte for byte the same for the same weights.

    PEFT's own `save_pretrained` writes `target_modules` in the order of a set, which differs between processes.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    state = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    tensors = {key: value.detach().cpu().contiguous() for key, value in sorted(state.items())}
    save_file(tensors, out_dir / ADAPTER_FILE, metadata={"format": "pt"})
    config = model.peft_config[name].to_dict()
    config |= {"base_model_name_or_path": "models/base", "inference_mode": True}
    config = {key: sorted(value) if isinstance(value, set) else value for key, value in sorted(config.items())}
    write_json(out_dir / "adapter_config.json", config)


def copy_tokenizer(source: Path, out_dir: Path) -> None:
    """Copy the tokenizer's files from one model directory to another."""
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        if (source / name).exists():
            shutil.copyfile(source / name, out_dir / name)


def write_model_card(
    out_dir: Path,
    stage: str,
    parents: Mapping[str, Path],
    data: Mapping[str, Path],
    params: Params,
    runtime: RuntimeSettings,
) -> None:
    """Write `model_card.json`, the lineage: what this model was made from, with hashes, params and versions.

    The code is in dvc.lock and not here: an edit that does not change the weights must not make a new model of them,
    for all that comes after it would run again.
    """
    card = {
        "stage": stage,
        "parents": {role: {"path": path.as_posix(), "sha256": weights_hash(path)} for role, path in parents.items()},
        "data": {role: {"path": path.as_posix(), "sha256": sha256(path)} for role, path in data.items()},
        "params": params.used,
        "environment": environment(runtime),
    }
    write_json(out_dir / "model_card.json", card)


def weights_hash(model_dir: Path) -> str:
    """Return the SHA-256 of a model directory's weights."""
    files = sorted(model_dir.glob("*.safetensors"))
    if not files:
        raise InputError(f"{model_dir}: holds no safetensors weights; run `dvc repro`")
    return sha256(files[0]) if len(files) == 1 else json.dumps({file.name: sha256(file) for file in files})


def _is_of(key: str, adapter: str) -> bool:
    # `...q_proj.lora_A.policy.weight`; the name may also stand earlier in a key, as `model` does in each of them.
    return key.endswith((f".lora_A.{adapter}.weight", f".lora_B.{adapter}.weight"))
