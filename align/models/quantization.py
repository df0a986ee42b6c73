"""The base in four bits (QLoRA, arXiv 2305.14314): bitsandbytes' nf4, its scales quantized too (double quantization).

What is packed are the decoder's linear layers. Embeddings, norms, the language model's head, a reward model's head and
every adapter are not; adapters are in float32.
"""

from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from align.core.errors import InputError
from align.run.runtime import RuntimeSettings


def quantized(runtime: RuntimeSettings) -> dict[str, Any]:
    """Return what `from_pretrained` takes beside a dtype, so that the weights are as `runtime.quantization` says.

    Raises:
        InputError: bitsandbytes is missing, or does not work with the device.
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
    """Keep the packed layers of a model in the one layout that gradients flow through.

    On a CPU with avx512_bf16 bitsandbytes packs them anew at the first forward without gradients, for good: PPO writes
    and trains with the same layers, and would train without the gradients of all layers above.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _check(device: torch.device) -> None:
    what = "params.yaml: runtime.quantization: nf4"
    try:
        from bitsandbytes.cextension import ErrorHandlerMockBNBNativeLibrary, lib  # noqa: PLC0415 (seconds)
    except (ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{what} needs bitsandbytes, which does not load ({reason}); run `pip install -r requirements.txt`, or set "
            "none"
        ) from None
    if device.type == "cuda" and isinstance(lib, ErrorHandlerMockBNBNativeLibrary):
        raise InputError(
            f"{what}: bitsandbytes has no kernels for this CUDA ({torch.version.cuda}); install a version of it that "
            "has, or set none"
        )
