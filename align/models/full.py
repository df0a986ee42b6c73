"""What stages train: an adapter over the base or, where section `lora` is null, all weights of a model of its own."""

from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from align.core.errors import InputError
from align.core.files import read_json
from align.models.adapters import LoraSettings, continue_adapter, new_adapter, save_adapter
from align.models.base import load_base
from align.models.loading import load_adapter_weights, save_model
from align.run.runtime import RuntimeSettings

Trained = PeftModel | PreTrainedModel


def is_full(model_dir: Path) -> bool:
    """Return whether a model directory holds weights of its own, not an adapter."""
    return (model_dir / "config.json").exists() and not (model_dir / "adapter_config.json").exists()


def kind_of(model_dir: Path) -> Any:
    """Return the class that loads a full model: with a score head, if its configuration names one."""
    names = read_json(model_dir / "config.json").get("architectures")
    scores = isinstance(names, list) and any(str(name).endswith("ForSequenceClassification") for name in names)
    return AutoModelForSequenceClassification if scores else AutoModelForCausalLM


def load_full(
    model_dir: Path, runtime: RuntimeSettings, auto_class: Any = AutoModelForCausalLM, **kwargs: Any
) -> PreTrainedModel:
    """Load a model to train all weights of it: in float32, as in bfloat16 most steps are too small to change a weight.

    Raises:
        InputError: `runtime.quantization` packs the weights.
    """
    if runtime.quantization != "none":
        problem = f"{runtime.quantization}: packed weights cannot be trained; set it to none"
        raise InputError(f"params.yaml: runtime.quantization: {problem}")
    return load_base(model_dir, runtime.model_copy(update={"dtype": "float32"}), auto_class, **kwargs)


def start_model(
    base: Path, init: Path, runtime: RuntimeSettings, lora: LoraSettings | None = None, *, score: bool = False
) -> Trained:
    """Return a model to train that starts as `init`: all weights of it, or an adapter over the base.

    Args:
        base: the base's folder.
        init: the base again, where `lora` decides, or a model of the pipeline, whose kind is kept.
        runtime: where to load it.
        lora: of a new adapter; None trains all weights of the base.
        score: whether to put a new score head on it, which is trained too.
    """
    auto_class: Any = AutoModelForSequenceClassification if score else AutoModelForCausalLM
    labels = {"num_labels": 1} if score else {}
    kind: dict[str, Any] = (
        {"task_type": "SEQ_CLS", "modules_to_save": ["score"]} if score else {"task_type": "CAUSAL_LM"}
    )
    if lora is None if init == base else is_full(init):
        return load_full(init, runtime, auto_class, **labels)
    model = load_base(base, runtime, auto_class, **labels)
    return continue_adapter(model, init, **kind) if lora is None or init != base else new_adapter(model, lora, **kind)


def state_of(model: Trained) -> dict[str, Tensor]:
    """Return a copy of the weights that training changes."""
    state = get_peft_model_state_dict(model) if isinstance(model, PeftModel) else model.state_dict()
    return {key: value.clone() for key, value in state.items()}


def put_state(model: Trained, state: dict[str, Tensor]) -> None:
    """Set the weights that `state_of` gave."""
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, state)
    else:
        model.load_state_dict(state)


def put_model(model: Trained, model_dir: Path, runtime: RuntimeSettings) -> None:
    """Set the weights to those of another folder of the same kind."""
    full = not isinstance(model, PeftModel)
    put_state(model, load_full(model_dir, runtime).state_dict() if full else load_adapter_weights(model_dir))


def save_trained(model: Trained, out_dir: Path, runtime: RuntimeSettings) -> None:
    """Write an adapter (`save_adapter`), or all weights as transformers does, in `runtime.dtype`.

    Both are byte-identical for the same weights.
    """
    if isinstance(model, PeftModel):
        save_adapter(model, out_dir)
        return
    nn.Module.to(model, runtime.torch_dtype)
    source, model.config.name_or_path = model.config.name_or_path, ""
    model.config.use_cache = True  # trainers switch it off, for good
    save_model(model, out_dir, str(source))
