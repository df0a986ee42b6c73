"""Where and how a stage computes: device, dtype, threads, seeds, quiet logs."""

import gc
import hashlib
import importlib.util
import logging
import os
import re
import warnings
from typing import Literal

import psutil
import torch
from pydantic import Field

from align.core.errors import InputError, quoted
from align.core.params import Settings


class RuntimeSettings(Settings):
    """Section `runtime` of params.yaml. CPU results depend on the number of threads to the last bit."""

    device: str
    dtype: Literal["float32", "bfloat16"]
    quantization: Literal["none", "nf4"]
    optim: Literal["adamw_torch", "paged_adamw_32bit", "paged_adamw_8bit"]
    num_threads: int | None = Field(ge=1, le=1024)
    batch_size: int = Field(ge=1)

    @property
    def threads(self) -> int:
        """The number of threads: `num_threads`, or as many as this process has physical cores.

        A single core counts with its hardware threads, since decoding waits for memory.
        """
        if self.num_threads is not None:
            return self.num_threads
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        cores = min(psutil.cpu_count(logical=False) or usable, usable)
        return cores if cores > 1 else min(usable, 2)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of the base model's weights; with nf4, of those that are not packed."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of the base model's products: with nf4, bfloat16 on a GPU; few CPUs multiply that."""
        packed = self.quantization == "nf4" and self.torch_device.type == "cuda"
        return torch.bfloat16 if packed else self.torch_dtype

    @property
    def needs_bitsandbytes(self) -> bool:
        """Whether results depend on bitsandbytes."""
        return self.quantization != "none" or self.optim.startswith("paged_")

    @property
    def torch_device(self) -> torch.device:
        """The device; `auto` means CUDA if there is one."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", self.device):
            raise InputError(
                f"params.yaml: runtime.device: should be auto, cpu, cuda or cuda:N, got {quoted(self.device)}"
            )
        device = torch.device(self.device)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise InputError(
                f"params.yaml: runtime.device: {self.device!r}, but no CUDA device is visible; set auto or cpu"
            )
        return device


def start(runtime: RuntimeSettings, seed: int) -> None:
    """Seed torch, fix the thread count and silence libraries that log at every start.

    Imported objects stay, so the garbage collector skips them, at exit too.

    Raises:
        InputError: the settings need bitsandbytes, which is not installed.
    """
    if runtime.needs_bitsandbytes and importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            "params.yaml: runtime: quantization nf4 and paged optimizers need bitsandbytes, which is not installed; "
            "run `pip install -r requirements.txt`, or set none and adamw_torch"
        )
    if gc.get_freeze_count() == 0:
        gc.freeze()
    gc.set_threshold(700, 10, 10)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    torch.set_num_threads(runtime.threads)
    torch.manual_seed(seed)
    for name in ("transformers", "trl", "peft", "datasets", "accelerate", "bitsandbytes", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Deprecations inside the pinned libraries do not concern the user.
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category)
    warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")  # they are not paged there
    from transformers.utils import logging as transformers_logging  # noqa: PLC0415 (heavy, and only here)

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def is_main_process() -> bool:
    """Return whether this process is the one of `accelerate launch` that writes files."""
    return os.environ.get("RANK", "0") == "0"


def row_seed(seed: int, *parts: str | int) -> int:
    """Derive the seed of one row from the run's seed and, say, stage and row id; it depends on no other row."""
    digest = hashlib.sha256("\x1f".join(map(str, (seed, *parts))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
