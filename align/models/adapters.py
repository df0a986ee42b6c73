"""LoRA adapters in PEFT's layout: new ones, loading and saving."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from align.core.errors import InputError, quoted
from align.core.files import REBUILD, read_json, write_json
from align.core.params import Settings
from align.models.loading import ADAPTER_FILE, load_adapter_weights, reading_model
from align.models.lora_linears import use_onednn_lora


def _leaves_the_base_alone(value: bool | str) -> bool | str:
    if value not in (True, "gaussian", "orthogonal"):
        raise ValueError(
            "true, gaussian or orthogonal, with which an adapter starts as no change (PEFT's others change the base, "
            "which all adapters share, need data, freeze a factor, or start at random)"
        )
    return value


InitLoraWeights = Annotated[bool | str, AfterValidator(_leaves_the_base_alone)]


class LoraShape(BaseModel):
    """The keys of an adapter's configuration that PEFT does not check, or that this pipeline cannot keep."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    r: int = Field(ge=1, le=65536)
    lora_alpha: float = Field(gt=0)
    lora_dropout: float = Field(ge=0, lt=1)
    target_modules: str | list[str]
    layers_to_transform: list[int] | int | None = None
    modules_to_save: list[str] | None = None
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: InitLoraWeights = True
    lora_bias: Literal[False] = False  # our merged layers have the base's bias


class LoraSettings(Settings):
    """Section `lora` of params.yaml, in PEFT's terms; every adapter of the pipeline has this shape."""

    r: int = Field(ge=1)
    lora_alpha: int = Field(ge=1)
    lora_dropout: float = Field(ge=0, lt=1)
    target_modules: str | list[str]
    layers_to_transform: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: InitLoraWeights = True

    @model_validator(mode="after")
    def _modules_by_name(self) -> Self:
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise ValueError("target_modules by name, as a list, where layers_to_transform is set")
        if self.init_lora_weights == "orthogonal" and self.r % 2:
            raise ValueError("an even r with init_lora_weights orthogonal")
        return self

    def config(self, **kwargs: Any) -> LoraConfig:
        """Return PEFT's configuration."""
        return use_onednn_lora(LoraConfig(**self.model_dump(), **kwargs))


def new_adapter(model: PreTrainedModel, lora: LoraSettings, **kwargs: Any) -> PeftModel:
    """Return `model` with a new adapter."""
    count = model.config.get_text_config().num_hidden_layers
    if beyond := [layer for layer in lora.layers_to_transform or [] if layer >= count]:
        raise InputError(
            f"params.yaml: lora.layers_to_transform: the model has layers 0 to {count - 1}, not "
            f"{quoted(beyond[0])}; choose others, or set null for all"
        )
    with reading_model("params.yaml: lora.target_modules", "name modules of this model, or set all-linear"):
        head = model.get_output_embeddings()
        adapted = get_peft_model(model, lora.config(**kwargs))
    assert isinstance(adapted, PeftModel)
    for name, module in adapted.named_modules():
        if isinstance(module, LoraLayer) and (module.lora_embedding_A or module.get_base_layer() is head):
            raise InputError(
                f"params.yaml: lora.target_modules: {name.removeprefix('base_model.model.')} is an embedding or the "
                "output head, which other weights may share; name layers between them, or set all-linear"
            )
    return adapted


def check_lora(base_dir: Path, lora: LoraSettings) -> None:
    """Raise `InputError` unless the base, of which only the configuration is read, takes such adapters."""
    with reading_model(f"{base_dir}: cannot read its configuration"), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base_dir))
    new_adapter(model, lora, task_type="CAUSAL_LM")


def put_adapter_weights(model: PeftModel, state: dict[str, Tensor], name: str, path: Path) -> None:
    """Set the weights of adapter `name`; `state`, read from `path`, must hold all of them and no others."""
    try:
        result: Any = set_peft_model_state_dict(model, state, adapter_name=name)
        fits = not result.unexpected_keys and not any(is_of(key, name) for key in result.missing_keys)
    except RuntimeError:  # a tensor of another shape
        fits = False
    if not fits:
        raise InputError(f"{path}: does not fit the base model; rebuild it with `dvc repro`")


def load_adapter_config(model_dir: Path) -> LoraConfig:
    """Return the configuration of the LoRA adapter in `model_dir`."""
    path = model_dir / "adapter_config.json"
    values = read_json(path)
    if values.get("peft_type") != "LORA":
        raise InputError(f"{path}: peft_type is {quoted(values.get('peft_type'))}; only LORA adapters are supported")
    try:
        LoraShape.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {key}: {first['msg']}, got {quoted(first['input'])}; {REBUILD}") from None
    with reading_model(f"{path}: not a LoRA adapter's configuration"):
        config = LoraConfig.from_pretrained(str(model_dir))
    assert isinstance(config, LoraConfig)
    return use_onednn_lora(config)


def continue_adapter(model: PreTrainedModel, model_dir: Path, **kwargs: Any) -> PeftModel:
    """Return `model` with the adapter of `model_dir`, trainable.

    `kwargs` replace values of its configuration, such as `modules_to_save`, where a head that the directory does not
    hold stays as it is in `model`.
    """
    config = load_adapter_config(model_dir)
    for key, value in {"inference_mode": False, "base_model_name_or_path": None, **kwargs}.items():
        setattr(config, key, value)
    with reading_model(f"{model_dir / 'adapter_config.json'}: does not fit the base model"):
        adapted = get_peft_model(model, config)
    assert isinstance(adapted, PeftModel)
    own = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    heads = {key: value for key, value in own.items() if ".lora_" not in key}  # PEFT wants them in the state, too
    put_adapter_weights(adapted, heads | load_adapter_weights(model_dir), "default", model_dir / ADAPTER_FILE)
    return adapted


def save_adapter(model: PeftModel, out_dir: Path, name: str = "default") -> None:
    """Write one adapter in PEFT's layout, byte-identical for the same weights.

    PEFT's `save_pretrained` writes `target_modules` in set order, which differs between processes.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    state = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    tensors = {key: value.detach().cpu().contiguous() for key, value in sorted(state.items())}
    save_file(tensors, out_dir / ADAPTER_FILE, metadata={"format": "pt"})
    config = model.peft_config[name].to_dict()
    config |= {"base_model_name_or_path": "models/base", "inference_mode": True}
    config = {key: sorted(value) if isinstance(value, set) else value for key, value in sorted(config.items())}
    write_json(out_dir / "adapter_config.json", config)


def is_of(key: str, adapter: str) -> bool:
    """Return whether `key`, such as `...q_proj.lora_A.policy.weight`, names a parameter of the adapter."""
    # Compare the whole ending: an adapter may be called `model`, which is in every key.
    return key.endswith(tuple(f".{part}.{adapter}.weight" for part in ("lora_A", "lora_B", "lora_magnitude_vector")))
