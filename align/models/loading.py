"""The files of models and adapters, which come from anywhere: what is wrong with them is one line.

Nothing is unpickled, and no code that a model brings along is run.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from jinja2 import TemplateError
from peft import LoraConfig
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from align.core.errors import InputError, quoted
from align.core.files import REBUILD, check_regular, read_json

ADAPTER_FILE = "adapter_model.safetensors"
# How every model is loaded: without pickle, and without the code that `auto_map` names.
SAFELY = {"use_safetensors": True, "trust_remote_code": False}
# What transformers and PEFT raise about files that they did not expect; torch's lack of memory is a RuntimeError too.
MODEL_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
    TemplateError,
    TypeError,
    ValueError,
)


@contextmanager
def reading_model(what: str, advice: str = REBUILD) -> Iterator[None]:
    """Turn what the libraries raise about a model's files into an `InputError` that begins with `what`.

    They check little and raise nearly anything about what they did not expect. Only calls into them belong inside.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters becomes the error
            yield
    except InputError:
        raise
    except MODEL_ERRORS as error:
        raise InputError(f"{what}: {shortened(error)}; {advice}") from None
    except Exception as error:
        if type(error) is not Exception:  # the tokenizers library raises it bare
            raise
        raise InputError(f"{what}: {shortened(error)}; {advice}") from None


def shortened(error: Exception) -> str:
    """Return a library's message on one line, without what comes after its first 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "..."


class LoraShape(BaseModel):
    """The part of an adapter's configuration that PEFT takes unchecked; there is more."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    r: int = Field(ge=1, le=65536)
    lora_alpha: float = Field(gt=0)
    lora_dropout: float = Field(ge=0, lt=1)
    target_modules: str | list[str]
    layers_to_transform: list[int] | int | None = None
    modules_to_save: list[str] | None = None


def load_weights(name: str | Path, what: str, advice: str, auto_class: Any, **kwargs: Any) -> PreTrainedModel:
    """Load a model; weights that are missing or do not fit are an error, where transformers would draw random ones."""
    with reading_model(what, advice):
        if os.path.exists(os.path.join(name, "adapter_config.json")):  # transformers would load its base, and put it on
            raise ValueError("it is an adapter; merge it into its base first")
        model, info = auto_class.from_pretrained(name, output_loading_info=True, **SAFELY, **kwargs)
        # A head of our own is new by design.
        missing = sorted(key for key in info["missing_keys"] if not key.startswith("score."))
        if missing or info["mismatched_keys"]:
            raise ValueError(f"tensors are missing or do not fit: {quoted([*missing, *info['mismatched_keys']])}")
        if model.config.get_text_config().num_hidden_layers < 1:
            raise ValueError("it has no layers")
    loaded: PreTrainedModel = model
    return loaded


def load_adapter_config(model_dir: Path) -> LoraConfig:
    """Return the configuration of the LoRA adapter in `model_dir`."""
    path = model_dir / "adapter_config.json"
    values = read_json(path)
    if values.get("peft_type") != "LORA":
        raise InputError(f"{path}: peft_type is {quoted(values.get('peft_type'))}; only LORA adapters are read here")
    try:
        LoraShape.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {key}: {first['msg']}, got {quoted(first['input'])}; {REBUILD}") from None
    with reading_model(f"{path}: not a LoRA adapter's configuration"):
        config = LoraConfig.from_pretrained(str(model_dir))
    assert isinstance(config, LoraConfig)
    return config


def load_adapter_weights(model_dir: Path) -> dict[str, Tensor]:
    """Return the tensors of the adapter in `model_dir`, as PEFT's `set_peft_model_state_dict` takes them."""
    path = model_dir / ADAPTER_FILE
    check_regular(path)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot read the weights ({error}); {REBUILD}") from None
    for key, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            found = "holds NaN or infinity" if tensor.is_floating_point() else f"is of {tensor.dtype}"
            raise InputError(f"{path}: tensor {quoted(key)} {found}; {REBUILD}")
    return tensors


def load_score_bias(path: Path) -> float:
    """Return the number that centres a reward model's scores."""
    bias = read_json(path).get("score_bias")
    if not isinstance(bias, int | float) or isinstance(bias, bool) or abs(bias) > 1e6:
        raise InputError(f"{path}: score_bias should be a number, got {quoted(bias)}; {REBUILD}")
    return float(bias)
