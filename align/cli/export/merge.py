"""A model as plain transformers loads it: its adapter merged into the base, in a folder with tokenizer and card."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging

from align.cli.project.cards import CARD_FILE, ModelCard, source_hash
from align.core.errors import InputError, quoted
from align.core.files import REBUILD, check_regular, replacing
from align.models.adapters import load_adapter_config, put_adapter_weights
from align.models.base import copy_tokenizer
from align.models.loading import ADAPTER_FILE, load_adapter_weights, load_score_bias, load_weights, reading_model
from align.models.stack import HEAD_KEY, SCORE_FILE

MODELS = Path("models")
README = "README.md"
SIGNATURE = "Written by `align export`."  # in the README of each export
WRITTEN = ("*.json", "*.jinja", "*.safetensors", README, ".gitattributes")


@dataclass(frozen=True)
class Parts:
    """What a model consists of: a folder with full weights, or an adapter and the base that it goes over."""

    name: str
    model_dir: Path
    base_dir: Path | None  # None: `model_dir` has full weights
    score_bias: float | None = None  # of a reward model: what centres its scores

    @property
    def is_reward_model(self) -> bool:
        """Tell whether it scores text instead of writing it."""
        return self.score_bias is not None


def quiet() -> None:
    """Silence what transformers tells at each loading and saving."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def find_model(name: str, base_dir: Path | None = None) -> Parts:
    """Return the parts of a model: `m2` is models/m2; anything else is the path of a model directory.

    Args:
        name: as the user wrote it.
        base_dir: the base of an adapter; None: the folder `base` beside it.

    Raises:
        InputError: there is no such model, or its base is not the one that it was trained over.
    """
    model_dir = _folder(name)
    if not (model_dir / "adapter_config.json").exists():
        if not (model_dir / "config.json").exists():
            raise InputError(f"{model_dir}: holds no model (adapter_config.json or config.json); {REBUILD}")
        return Parts(model_dir.name, model_dir, None)
    base_dir = base_dir or model_dir.parent / "base"
    if not (base_dir / "config.json").exists():
        raise InputError(f"{base_dir}: holds no base model (config.json) for {model_dir}; name it with --base DIR")
    if (model_dir / CARD_FILE).exists():
        base = ModelCard.read(model_dir).parents.get("base")
        if base is not None and source_hash(base_dir) != base.sha256:
            raise InputError(
                f"{base_dir}: not the base that {model_dir} was trained over (other weights, by SHA-256); name that "
                f"one with --base DIR, or run `dvc checkout`"
            )
    bias = None
    if _has_head(model_dir):
        # A reward model from elsewhere has no bias: its scores are not centred.
        bias = load_score_bias(model_dir / SCORE_FILE) if (model_dir / SCORE_FILE).exists() else 0.0
    return Parts(model_dir.name, model_dir, base_dir, bias)


def _folder(name: str) -> Path:
    if "/" not in name and (MODELS / name).is_dir() and (MODELS / name).name == name:
        return MODELS / name
    try:
        found = Path(name).is_dir()
    except (OSError, ValueError):  # a name too long, a NUL
        found = False
    if found:
        return Path(name).resolve()
    models = sorted(path.name for path in MODELS.iterdir() if path.is_dir()) if MODELS.is_dir() else []
    raise InputError(
        f"no model {quoted(name)}: expected a folder, or one of {', '.join(models) or 'those that `dvc repro` makes'}"
    )


def _has_head(model_dir: Path) -> bool:
    path = model_dir / ADAPTER_FILE
    check_regular(path)
    try:
        with safe_open(path, framework="pt") as tensors:
            names: list[str] = tensors.keys()
            return HEAD_KEY in names
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot read the weights ({error}); {REBUILD}") from None


def load_merged(parts: Parts, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Return the whole model on the CPU, its parameters in `dtype` (None: that of the base's files), in eval mode.

    Each layer is merged in float32 and rounded to `dtype` once, however the base is stored; an adapter that was trained
    over a quantized base goes into the full-precision one. A reward model has a head of one label, without its bias.
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
            raise InputError(f"{parts.model_dir}: {key} has values beyond float16's range; take --dtype bfloat16")
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
                    raise InputError(
                        f"{path}: adapts {name.removeprefix('base_model.model.')}, whose weight the base shares "
                        "between its first and last layer: merged it would change both; train without it "
                        "(target_modules)"
                    )
                layer: Any = module
                layer.float()
                layer.merge(safe_merge=True)
                layer.get_base_layer().to(dtype)
        inner: Any = adapted.base_model
        merged = inner.unload()
    assert isinstance(merged, PreTrainedModel)
    return merged


def is_exported(folder: Path) -> bool:
    """Tell whether `align export` has written a folder: its README says so."""
    try:
        return (folder / "config.json").is_file() and SIGNATURE in (folder / README).read_text(encoding="utf-8")
    except (OSError, ValueError):  # no README, or none in UTF-8; a name too long
        return False


def check_target(to: Path, force: bool) -> Path:
    """Return the folder to write, resolved: it is new or empty, or with `force` one that an export wrote.

    Raises:
        InputError: it is neither; the message names a file that would be lost.
    """
    try:
        target = to.resolve()
        entries = sorted(path.name for path in target.iterdir()) if target.exists() else []
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--to {to}: {reason}; name a new folder") from None
    if not entries:
        return target
    if not force:
        raise InputError(f"--to {to}: holds {entries[0]} already; name a new folder, or replace an export with --force")
    foreign = [name for name in entries if not any(Path(name).match(pattern) for pattern in WRITTEN)]
    if not is_exported(target):
        raise InputError(f"--to {to}: `align export` did not write it; --force replaces nothing else")
    if foreign:
        raise InputError(f"--to {to}: holds {foreign[0]}, which no export writes; move it away, or name a new folder")
    return target


def write_export(model: PreTrainedModel, parts: Parts, to: Path, card_text: str, max_shard_size: str) -> list[Path]:
    """Write a merged model with its tokenizer and cards to `to`, whole or not at all; returns the files, sorted.

    Raises:
        InputError: the folder cannot be written.
    """
    model.config.name_or_path = ""
    if parts.score_bias is not None:
        model.config.score_bias = parts.score_bias
        model.config.problem_type = "regression"  # or a pipeline of transformers would put a sigmoid over the score
    try:
        with replacing(to) as temporary:
            temporary.mkdir()
            model.save_pretrained(temporary, max_shard_size=max_shard_size)
            copy_tokenizer(parts.model_dir, temporary)
            if (parts.model_dir / CARD_FILE).exists():
                (temporary / CARD_FILE).write_bytes((parts.model_dir / CARD_FILE).read_bytes())
            (temporary / README).write_text(card_text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--to {to}: cannot write ({error.strerror or error}); name another folder") from None
    return sorted(to.iterdir())
