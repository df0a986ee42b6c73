"""Which implementation of attention a model trains with, by transformers' names."""

from typing import Any, Literal

from peft import PeftModel
from transformers.utils.import_utils import is_flash_attn_2_available, is_flash_attn_3_available

from align.core.errors import InputError
from align.run.runtime import RuntimeSettings

Attention = Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3"]
# Flash attention -> the package that has it, and whether it is there and has a GPU.
FLASH = {
    "flash_attention_2": ("flash-attn", is_flash_attn_2_available),
    "flash_attention_3": ("flash-attn-3", is_flash_attn_3_available),
}


def check_attention(section: str, kind: Attention | None, runtime: RuntimeSettings) -> None:
    """Raise `InputError` if this machine or `runtime` has no attention of that kind; call it before anything trains.

    transformers would download kernels for a missing package, and flash attention rounds float32 to bfloat16.
    """
    if kind not in FLASH:
        return
    package, is_available = FLASH[kind]
    key = f"params.yaml: {section}.attn_implementation: {kind}"
    if runtime.torch_device.type != "cuda":
        raise InputError(f"{key} needs a GPU, and runtime.device is {runtime.torch_device.type}; set null")
    if runtime.dtype != "bfloat16":
        raise InputError(f"{key} computes in bfloat16, and runtime.dtype is {runtime.dtype}; set one of them")
    if not is_available():
        raise InputError(f"{key} needs the package {package}, which is not installed for this GPU; set null")


def use_attention(model: Any, kind: Attention | None) -> None:
    """Let a model, alone or under an adapter, compute attention that way from now on; None leaves it as it is."""
    if kind is not None:
        base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        base.set_attn_implementation(kind)
