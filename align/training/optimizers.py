"""AdamW, by `runtime.optim`: torch's, or that of bitsandbytes, whose state is paged out where a GPU's memory is full.

On a CPU bitsandbytes computes the same, unpaged.
"""

from typing import Any

import torch

from align.core.errors import InputError

# What transformers' trainers are told: their own default, named here so that a new default changes nothing.
IN_TRAINERS = {"adamw_torch": "adamw_torch_fused"}


def adamw(optim: str) -> tuple[Any, dict[str, Any]]:
    """Return the class of the optimizer and what its constructor takes beside torch's arguments.

    Raises:
        InputError: bitsandbytes is needed and does not load.
    """
    if not optim.startswith("paged_"):
        return torch.optim.AdamW, {}
    try:
        from bitsandbytes.optim.adamw import AdamW  # noqa: PLC0415 (seconds)
    except (ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"params.yaml: runtime.optim: {optim} needs bitsandbytes, which does not load ({reason}); run "
            "`pip install -r requirements.txt`, or set adamw_torch"
        ) from None
    return AdamW, {"optim_bits": 8 if optim.endswith("8bit") else 32, "is_paged": True}
