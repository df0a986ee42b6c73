"""What a result follows from, apart from its inputs and params: the code that runs, and what it runs on."""

import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from align.core.files import sha256
from align.run.runtime import RuntimeSettings

LIBRARIES = ("torch", "transformers", "peft", "trl", "tokenizers", "accelerate", "datasets", "numpy")
ROOT = Path(__file__).parents[2]


def code_hashes() -> dict[str, str]:
    """Return the SHA-256 of each module of this project that the process has imported, and of each template."""
    loaded = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
    folders = (f"{ROOT}/align/", f"{ROOT}/stages/")
    own = [Path(file) for file in loaded if file.startswith(folders)] + list((ROOT / "prompts").rglob("*.jinja"))
    return {file.relative_to(ROOT).as_posix(): sha256(file) for file in sorted(own)}


def environment(runtime: RuntimeSettings) -> dict[str, Any]:
    """Return what else decides the last bits of a result: versions, device and its instruction set, threads.

    It goes into outputs, so it names no machine: on machines of one type it is the same.
    """
    device = runtime.torch_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {
        "python": platform.python_version(),
        **{library: version(library) for library in LIBRARIES},
        **({"bitsandbytes": version("bitsandbytes")} if runtime.needs_bitsandbytes else {}),
        "device": f"{device.type} ({name})",
        "num_threads": runtime.num_threads,
    }
