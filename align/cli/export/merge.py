"""A model as plain transformers loads it: its adapter merged into the base."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from align.cli.project.cards import CARD_FILE, ModelCard, source_hash
from align.core.errors import InputError, quoted
from align.core.files import REBUILD
from align.models.adapters import load_adapter_config, put_adapter_weights
from align.models.full import kind_of
from align.models.loading import ADAPTER_FILE, load_adapter_weights, load_weights, reading_model
from align.models.stack import score_bias

MODELS = Path("models")


@dataclass(frozen=True)
class Parts:
    """What a model consists of: a folder with full weights, or an adapter and its base."""

    name: str
    model_dir: Path
    base_dir: Path | None  # None: `model_dir` has full weights
    score_bias: float | None = None  # of a reward model: what centres its scores

    @property
    def is_reward_model(self) -> bool:
        """Whether it scores text instead of writing it."""
        return self.score_bias is not None


def find_model(name: str, base_dir: Path | None = None) -> Parts:
    """Return the parts of a model: `m2` is models/m2; anything else is the path of a model directory.

    The base of an adapter is by default the folder `base` beside it, and must be the one it was trained over.
    """
    model_dir = _folder(name)
    if not (model_dir / "adapter_config.json").exists():
        if not (model_dir / "config.json").exists():
            raise InputError(f"{model_dir}: holds no model (adapter_config.json or config.json); {REBUILD}")
        bias = score_bias(model_dir) if kind_of(model_dir) is AutoModelForSequenceClassification else None
        return Parts(model_dir.name, model_dir, None, bias)
    base_dir = base_dir or model_dir.parent / "base"
    if not (base_dir / "config.json").exists():
        raise InputError(
            f"{base_dir}: holds no base model (config.json) for {model_dir}; make it with `dvc repro base_model`, or "
            "name it with --base DIR"
        )
    if (model_dir / CARD_FILE).exists():
        base = ModelCard.read(model_dir).parents.get("base")
        if base is not None and source_hash(base_dir) != base.sha256:
            what = f"{base_dir}: not the base that {model_dir} was trained over (another SHA-256)"
            raise InputError(f"{what}; name the right one with --base DIR, or run `dvc checkout`")
    bias = None
    if load_adapter_config(model_dir).task_type == "SEQ_CLS":
        bias = score_bias(model_dir)
    return Parts(model_dir.name, model_dir, base_dir, bias)


def _folder(name: str) -> Path:
    if "/" not in name and os.path.isdir(MODELS / name):
        return MODELS / name
    if os.path.isdir(name):
        return Path(name).resolve()
    models = sorted(path.name for path in MODELS.iterdir() if path.is_dir()) if MODELS.is_dir() else []
    known = f"one of {', '.join(models)}" if models else "run `dvc repro`"
    raise InputError(f"no model {quoted(name)}; name the folder of a model, or {known}")


def load_merged(parts: Parts, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Return the whole model on the CPU in eval mode, its parameters in `dtype` (None: that of the base's files).

    Each layer is merged in float32 and rounded once to `dtype`. An adapter trained over a quantized base is merged into
    the full-precision one. A reward model has a head of one label, without its bias.
    """
    source = parts.base_dir or parts.model_dir
    auto_class: Any = AutoModelForSequenceClassification if parts.is_reward_model else AutoModelForCausalLM
    labels = {"num_labels": 1} if parts.is_reward_model else {}
    model = load_weights(source, f"{source}: cannot load the model", REBUILD, auto_class, dtype="auto", **labels)
    dtype = dtype or model.dtype
    if parts.base_dir is not None:
        model = _merge(model, parts.model_dir, dtype)
    for key, parameter in model.named_parameters():  # not the buffers: some are float32 in a model of any dtype
        parameter.data = parameter.data.to(dtype)
        if dtype == torch.float16 and not parameter.isfinite().all():
            raise InputError(f"{parts.model_dir}: {key} has values beyond float16's range; use --dtype bfloat16")
    model.requires_grad_(False).eval()
    return model


def _merge(model: PreTrainedModel, model_dir: Path, dtype: torch.dtype) -> PreTrainedModel:
    config, state = load_adapter_config(model_dir), load_adapter_weights(model_dir)
    config.base_model_name_or_path = None  # PEFT warns where this differs from the base's path
    path = model_dir / "adapter_config.json"
    with reading_model(f"{path}: does not fit the base model"):
        adapted = get_peft_model(model, config)
        assert isinstance(adapted, PeftModel)
        adapted.set_requires_grad("default", requires_grad=False)
    put_adapter_weights(adapted, state, "default", model_dir / ADAPTER_FILE)
    embeddings = model.get_input_embeddings().weight if model.config.tie_word_embeddings else None
    with reading_model(f"{path}: cannot be merged"), torch.no_grad():
        for name, module in adapted.named_modules():
            if isinstance(module, BaseTunerLayer):
                if module.get_base_layer().weight is embeddings:
                    layer_name = name.removeprefix("base_model.model.")
                    raise InputError(f"{path}: adapts {layer_name}, whose weight the base shares; train without it")
                layer: Any = module
                layer.float()
                layer.merge(safe_merge=True)
                layer.get_base_layer().to(dtype)
        inner: Any = adapted.base_model
        merged = inner.unload()
    assert isinstance(merged, PreTrainedModel)
    return merged
