"""Loads untrusted models and adapters: no pickle, no code from the model, one-line errors."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from jinja2 import TemplateError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from align.core.errors import InputError, quoted
from align.core.files import REBUILD, check_regular, out_of_space, read_json

ADAPTER_FILE = "adapter_model.safetensors"
SAFELY = {"use_safetensors": True, "trust_remote_code": False}
SAMPLING_KEYS = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
# What transformers and PEFT raise about malformed files; a torch.OutOfMemoryError is a RuntimeError too.
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

    They raise nearly anything, so put only calls into them inside.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        if type(error) is not Exception and not isinstance(error, MODEL_ERRORS):  # tokenizers raises a bare Exception
            raise
        raise InputError(f"{what}: {shortened(error)}; {advice}") from None


def shortened(error: Exception) -> str:
    """Return an exception's message on one line, cut to 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "..."


def load_weights(name: str | Path, what: str, advice: str, auto_class: Any, **kwargs: Any) -> PreTrainedModel:
    """Load a model; missing or misshapen weights, which transformers would draw at random, are an error."""
    with reading_model(what, advice):
        if os.path.exists(os.path.join(name, "adapter_config.json")):  # transformers would load its base too
            raise ValueError("it is an adapter; merge it into its base first")
        model, info = auto_class.from_pretrained(name, output_loading_info=True, **SAFELY, **kwargs)
        # A new score head is random by design.
        missing = sorted(key for key in info["missing_keys"] if not key.startswith("score."))
        if missing or info["mismatched_keys"]:
            raise ValueError(f"tensors are missing or do not fit: {quoted([*missing, *info['mismatched_keys']])}")
        if model.config.get_text_config().num_hidden_layers < 1:
            raise ValueError("it has no layers")
        mend_generation_config(model)
    loaded: PreTrainedModel = model
    return loaded


def mend_generation_config(model: Any) -> None:
    """Make a model's `generation_config.json` one that transformers also writes.

    Published ones set a temperature or top-p and leave out `do_sample`, which they mean to be true; where it is false
    these have no effect.
    """
    config = getattr(model, "generation_config", None)
    if config is None or config.do_sample is True:
        return
    try:
        config.validate(strict=True)
    except ValueError:
        if config.do_sample is None:
            config.do_sample = True
        else:
            for key in SAMPLING_KEYS:
                setattr(config, key, None)


def save_model(model: PreTrainedModel, folder: Path, what: str, **kwargs: Any) -> None:
    """Write a model's weights and configuration; `what` names the foreign files behind it in an `InputError`."""
    try:
        model.save_pretrained(folder, **kwargs)
    except MODEL_ERRORS as error:
        if out_of_space(error):
            raise
        raise InputError(f"{what}: cannot be saved again: {shortened(error)}; correct its configuration") from None


def load_adapter_weights(model_dir: Path) -> dict[str, Tensor]:
    """Return the tensors of the adapter in `model_dir`, for PEFT's `set_peft_model_state_dict`."""
    path = model_dir / ADAPTER_FILE
    check_regular(path)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot read the weights ({error}); {REBUILD}") from None
    for key, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            problem = "holds NaN or infinity" if tensor.is_floating_point() else f"is of {tensor.dtype}"
            raise InputError(f"{path}: tensor {quoted(key)} {problem}; {REBUILD}")
    return tensors


def load_score_bias(path: Path) -> float:
    """Return the bias that centres a reward model's scores."""
    bias = read_json(path).get("score_bias")
    if not isinstance(bias, int | float) or isinstance(bias, bool) or abs(bias) > 1e6:
        raise InputError(f"{path}: score_bias should be a number, got {quoted(bias)}; {REBUILD}")
    return float(bias)
