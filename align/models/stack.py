"""One base in memory with any number of LoRA adapters over it, and the score heads of reward models."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from align.core.errors import InputError, quoted
from align.core.files import REBUILD
from align.models.adapters import is_of, load_adapter_config, put_adapter_weights, save_adapter
from align.models.base import load_base, load_tokenizer
from align.models.loading import ADAPTER_FILE, load_adapter_weights, load_score_bias, reading_model
from align.run.runtime import RuntimeSettings

HEAD_KEY = "base_model.model.score.weight"
SCORE_FILE = "score_bias.json"


@dataclass(frozen=True)
class ScoreHead:
    """A reward model's head: the score of a final hidden state, centred by `bias`."""

    weight: Tensor  # (1, H), float32
    bias: float

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return the float32 scores (...) of hidden states (..., H)."""
        return (hidden.float() * self.weight).sum(-1) + self.bias  # no matmul: autocast would round it to bfloat16


class Heads(dict[str, ScoreHead]):
    """The heads of a stack's reward models, by name."""

    def __missing__(self, name: str) -> ScoreHead:
        raise InputError(
            f"the model used as {quoted(name)} has no score head; give a reward model, such as models/reward"
        )


class AdapterStack:
    """One base in memory and any number of named LoRA adapters over it, of which at most one is active at a time.

    `stack.add("policy", Path("models/m1"))` loads an adapter (none if the directory holds the base itself); inside
    `with stack.using("policy")` the model computes with it.
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
        # The decoder layers: the first list of as many modules as the configuration has layers.
        self.layers = next(
            module for module in self.causal_lm.modules() if isinstance(module, nn.ModuleList) and len(module) == count
        )

    def add(self, name: str, model_dir: Path) -> None:
        """Load `model_dir` as `name`; a reward model's head and bias become `heads[name]`."""
        if not (model_dir / "adapter_config.json").exists():
            if not (model_dir / "config.json").exists():
                raise InputError(f"{model_dir}: holds no model (adapter_config.json or config.json); run `dvc repro`")
            self._adapters[name] = False
            return
        config = load_adapter_config(model_dir)
        # All adapters run over the causal LM; `heads` holds the score heads.
        config.task_type, config.modules_to_save, config.inference_mode = None, None, False
        config.base_model_name_or_path = None  # PEFT warns if this differs from the base's path
        state = load_adapter_weights(model_dir)
        head = state.pop(HEAD_KEY, None)
        if head is not None:
            # A reward model from elsewhere may have no bias.
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
        """Yield the causal LM with adapter `name` active; parameters keep their `requires_grad`.

        Over a bfloat16 base the float32 adapters compute in bfloat16 too (autocast): casts to float32 and back would
        cost a quarter of the time.
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
        """Return the parameters of adapter `name` from layer `from_layer` on, in the model's order."""
        assert self._peft is not None
        below = {id(parameter) for layer in self.layers[:from_layer] for parameter in layer.parameters()}
        named = self._peft.named_parameters()
        return [parameter for key, parameter in named if is_of(key, name) and id(parameter) not in below]

    def first_layer(self, name: str) -> int:
        """Return the lowest layer that adapter `name` changes; its input is that of the bare base."""
        if not self._adapters[name]:
            return len(self.layers)
        adapted = {id(parameter) for parameter in self.parameters(name)}
        depths = [i for i, layer in enumerate(self.layers) if adapted & {id(p) for p in layer.parameters()}]
        inside = {id(parameter) for layer in self.layers for parameter in layer.parameters()}
        return depths[0] if depths and adapted <= inside else 0

    @contextmanager
    def recording(self, layers: Collection[int]) -> Iterator[dict[int, Tensor]]:
        """Yield a dictionary that each forward fills with the input states (B, T, H) of each of `layers`."""
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

    def entering(self, layer: int, states: Tensor) -> AbstractContextManager[None]:
        """Let forwards start at `layer` with `states` (B, T, H) that `recording` gave; the layers below do not run."""
        return self._with_layers([_Recorded(states) for _ in range(layer)])

    def checkpointing(self) -> AbstractContextManager[None]:
        """Let forwards keep only the input of each layer; backward recomputes the rest, with the adapter then active.

        transformers offers it in training mode only, where dropout is on.
        """
        return self._with_layers([_Checkpointed(module) for module in self.layers])

    @contextmanager
    def _with_layers(self, lowest: Sequence[nn.Module]) -> Iterator[None]:
        plain = list(self.layers)
        try:
            for i, module in enumerate(lowest):
                self.layers[i] = module
            yield
        finally:
            for i, module in enumerate(plain):
                self.layers[i] = module

    def save(self, name: str, out_dir: Path) -> None:
        """Write adapter `name` to `out_dir`; see `save_adapter`."""
        assert self._peft is not None
        save_adapter(self._peft, out_dir, name)


class _Recorded(nn.Module):
    """Replaces a layer below the entered one: returns the recorded states."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.states


class _Checkpointed(nn.Module):
    """Wraps a layer so that its inner activations are recomputed in the backward pass."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        states: Tensor = checkpoint(self.layer, *args, use_reentrant=False, **kwargs)
        return states
