"""One base in memory with any number of LoRA adapters over it, full models beside it, and score heads."""

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
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from align.core.errors import InputError, quoted
from align.core.files import REBUILD
from align.models.adapters import is_of, load_adapter_config, put_adapter_weights, save_adapter
from align.models.base import load_base, load_tokenizer
from align.models.full import is_full, kind_of, load_full, save_trained
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

    `stack.add("policy", Path("models/m1"))` loads an adapter (none if the directory is the base itself); inside
    `with stack.using("policy")` the model computes with it. A folder of full weights (`lora: null`) becomes a model of
    its own beside the base, which shares no layer: one in memory for each folder, and for each name in `float32`.
    """

    def __init__(self, base_dir: Path, runtime: RuntimeSettings) -> None:
        self.tokenizer = load_tokenizer(base_dir)
        self.causal_lm = load_base(base_dir, runtime).requires_grad_(False)
        self._base_dir, self._runtime = base_dir.resolve(), runtime
        self.compute_dtype, self.optim = runtime.compute_dtype, runtime.optim
        self.device = self.causal_lm.device
        self.heads = Heads()
        self._adapters: dict[str, bool] = {}  # name -> whether there is an adapter of this name
        self._peft: PeftModel | None = None
        self._full: dict[str, PreTrainedModel] = {}
        self._folders: dict[Path, PreTrainedModel] = {}  # the full models that names share
        self.layers = decoder_layers(self.causal_lm)

    def add(self, name: str, model_dir: Path, *, float32: bool = False) -> None:
        """Load `model_dir` as `name`; a reward model's head and bias become `heads[name]`.

        With `float32` a full model has these weights whatever `runtime.dtype` says and shares them with no other name,
        so that they can be trained. It computes in `runtime.dtype` all the same.
        """
        if is_full(model_dir):
            if model_dir.resolve() == self._base_dir:
                self._adapters[name] = False
            else:
                self._add_full(name, model_dir, float32)
            return
        if not (model_dir / "adapter_config.json").exists():
            raise InputError(f"{model_dir}: holds no model (adapter_config.json or config.json); run `dvc repro`")
        config = load_adapter_config(model_dir)
        # All adapters run over the causal LM; `heads` holds the score heads.
        config.task_type, config.modules_to_save, config.inference_mode = None, None, False
        config.base_model_name_or_path = None  # PEFT warns if this differs from the base's path
        state = load_adapter_weights(model_dir)
        head = state.pop(HEAD_KEY, None)
        if head is not None:
            if head.shape != (1, self.causal_lm.config.get_text_config().hidden_size):
                raise InputError(f"{model_dir / ADAPTER_FILE}: its score head does not fit the base model; {REBUILD}")
            self.heads[name] = ScoreHead(head.to(self.device, torch.float32), score_bias(model_dir))
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

    def _add_full(self, name: str, model_dir: Path, float32: bool) -> None:
        kind, folder = kind_of(model_dir), model_dir.resolve()
        model = None if float32 else self._folders.get(folder)
        if model is None:
            model = (load_full if float32 else load_base)(model_dir, self._runtime, kind).requires_grad_(False)
        if not float32:
            self._folders[folder] = model
        self._full[name] = model
        if kind is AutoModelForSequenceClassification:
            head = getattr(getattr(model, "score", None), "weight", None)
            if not isinstance(head, Tensor) or head.shape[0] != 1:
                raise InputError(f"{model_dir}: holds a classifier, but no score head of one label; {REBUILD}")
            self.heads[name] = ScoreHead(head.detach().to(self.device, torch.float32), score_bias(model_dir))

    @contextmanager
    def using(self, name: str) -> Iterator[PreTrainedModel]:
        """Yield the causal LM with adapter `name` active; parameters keep their `requires_grad`.

        Over a bfloat16 base the float32 adapters compute in bfloat16 too (autocast): casts to float32 and back would
        cost a quarter of the time.
        """
        half = self.causal_lm.dtype == torch.bfloat16
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            if name in self._full:
                yield self._full[name]
            elif self._peft is None:
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
        """Return the parameters of `name` from layer `from_layer` on, in the model's order: an adapter's, or all.

        The embeddings are below layer 1; a score head is in `heads`.
        """
        if name in self._full:
            model = self._full[name]
            parts = [*decoder_layers(model)[:from_layer], *([model.get_input_embeddings()] if from_layer else [])]
            left = {id(parameter) for part in parts for parameter in part.parameters()}
            whole = model.named_parameters()
            return [value for key, value in whole if id(value) not in left and not key.startswith("score.")]
        assert self._peft is not None
        below = {id(parameter) for layer in self.layers[:from_layer] for parameter in layer.parameters()}
        named = self._peft.named_parameters()
        return [parameter for key, parameter in named if is_of(key, name) and id(parameter) not in below]

    def first_layer(self, name: str) -> int:
        """Return the lowest layer that `name` changes, whose input is that of the bare base: 0 for a full model."""
        if name in self._full:
            return 0
        if not self._adapters[name]:
            return len(self.layers)
        adapted = {id(parameter) for parameter in self.parameters(name)}
        depths = [i for i, layer in enumerate(self.layers) if adapted & {id(p) for p in layer.parameters()}]
        inside = {id(parameter) for layer in self.layers for parameter in layer.parameters()}
        return depths[0] if depths and adapted <= inside else 0

    def _layers_of(self, name: str | None) -> nn.ModuleList:
        return decoder_layers(self._full[name]) if name in self._full else self.layers

    @contextmanager
    def recording(self, layers: Collection[int], name: str | None = None) -> Iterator[dict[int, Tensor]]:
        """Yield a dictionary that each forward fills with the input states (B, T, H) of each of `layers`.

        `name` is that of the model which runs; it matters for full models alone, as in the next two methods.
        """
        states: dict[int, Tensor] = {}

        def note(layer: int, *arguments: Any) -> None:
            _, positional, named = arguments
            states[layer] = positional[0] if positional else named["hidden_states"]

        own = self._layers_of(name)
        hooks = [own[i].register_forward_pre_hook(partial(note, i), with_kwargs=True) for i in set(layers)]
        try:
            yield states
        finally:
            for hook in hooks:
                hook.remove()

    def entering(self, layer: int, states: Tensor, name: str | None = None) -> AbstractContextManager[None]:
        """Let forwards start at `layer` with `states` (B, T, H) that `recording` gave; the layers below do not run."""
        return _with_layers(self._layers_of(name), [_Recorded(states) for _ in range(layer)])

    def checkpointing(self, name: str | None = None) -> AbstractContextManager[None]:
        """Let forwards keep only the input of each layer; backward recomputes the rest, with the adapter then active.

        transformers offers it in training mode only, where dropout is on.
        """
        layers = self._layers_of(name)
        return _with_layers(layers, [_Checkpointed(module) for module in layers])

    def save(self, name: str, out_dir: Path) -> None:
        """Write `name` to `out_dir`; see `save_adapter` and `save_trained`."""
        if name in self._full:
            save_trained(self._full[name], out_dir, self._runtime)
            return
        assert self._peft is not None
        save_adapter(self._peft, out_dir, name)


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the first list of as many modules as the configuration has layers."""
    count = model.config.get_text_config().num_hidden_layers
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count)


def score_bias(model_dir: Path) -> float:
    """Return what centres a reward model's scores; one from elsewhere may have no bias."""
    return load_score_bias(model_dir / SCORE_FILE) if (model_dir / SCORE_FILE).exists() else 0.0


@contextmanager
def _with_layers(layers: nn.ModuleList, lowest: Sequence[nn.Module]) -> Iterator[None]:
    plain = list(layers)
    try:
        for i, module in enumerate(lowest):
            layers[i] = module
        yield
    finally:
        for i, module in enumerate(plain):
            layers[i] = module


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
