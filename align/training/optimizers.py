"""AdamW by `runtime.optim`: torch's, or that of bitsandbytes, whose state is paged out when GPU memory is full.

On a CPU, bitsandbytes computes the same without paging.
"""

from typing import Any

import torch

from align.models.quantization import loading_bitsandbytes

# The value of `optim` in TrainingArguments: transformers' default, pinned here.
IN_TRAINERS = {"adamw_torch": "adamw_torch_fused"}


def adamw(optim: str) -> tuple[Any, dict[str, Any]]:
    """Return the class of the optimizer and the keyword arguments that torch's AdamW does not have.

    Raises:
        InputError: bitsandbytes is needed and does not load.
    """
    if not optim.startswith("paged_"):
        return torch.optim.AdamW, {}
    with loading_bitsandbytes(f"optim: {optim}", "adamw_torch"):
        from bitsandbytes.optim.adamw import AdamW  # noqa: PLC0415 (seconds)
    return AdamW, {"optim_bits": 8 if optim.endswith("8bit") else 32, "is_paged": True}
