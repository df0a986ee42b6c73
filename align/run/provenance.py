"""What a result follows from, apart from its inputs and params: the code that runs, and what it runs on."""

import hashlib
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


def code_hash() -> str:
    """Return a hash of the modules of this project that the process has imported, and of all templates."""
    loaded = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
    folders = (f"{ROOT}/align/", f"{ROOT}/stages/")
    own = [Path(file) for file in loaded if file.startswith(folders)] + list((ROOT / "prompts").rglob("*.jinja"))
    lines = [f"{file.relative_to(ROOT).as_posix()} {sha256(file)}\n" for file in sorted(own)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


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
