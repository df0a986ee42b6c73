"""The base in four bits (QLoRA, arXiv 2305.14314): bitsandbytes' nf4 with double quantization.

Only the decoder's linear layers are packed: no embeddings, norms, heads or adapters. Adapters are in float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from align.core.errors import InputError
from align.models.loading import shortened
from align.run.runtime import RuntimeSettings


def quantized(runtime: RuntimeSettings) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` for `runtime.quantization`.

    Raises:
        InputError: bitsandbytes is missing or has no kernels for the device.
    """
    if runtime.quantization == "none":
        return {}
    _check(runtime.torch_device)
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=runtime.compute_dtype,
    )
    return {"quantization_config": config, "device_map": {"": runtime.torch_device}}


def settle(model: nn.Module) -> None:
    """Keep the packed layers of a model in the only layout that gradients flow through.

    On a CPU with avx512_bf16, bitsandbytes repacks them for good at the first forward without gradients. PPO, which
    generates and trains with the same layers, would then lose the gradients.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _check(device: torch.device) -> None:
    with loading_bitsandbytes("quantization: nf4", "none"):
        from bitsandbytes.cextension import ErrorHandlerMockBNBNativeLibrary, lib  # noqa: PLC0415 (seconds)
    if device.type == "cuda" and isinstance(lib, ErrorHandlerMockBNBNativeLibrary):
        raise InputError(
            f"params.yaml: runtime.quantization: nf4: bitsandbytes has no kernels for CUDA {torch.version.cuda}; "
            "install another version of bitsandbytes, or set none"
        )


@contextmanager
def loading_bitsandbytes(setting: str, instead: str) -> Iterator[None]:
    """Turn a failed import of bitsandbytes into an `InputError` that names the setting, such as `optim: paged_...`."""
    try:
        yield
    except (ImportError, OSError, RuntimeError) as error:
        raise InputError(
            f"params.yaml: runtime.{setting} needs bitsandbytes, which does not load ({shortened(error)}); run "
            f"`pip install -r requirements.txt`, or set {instead}"
        ) from None
