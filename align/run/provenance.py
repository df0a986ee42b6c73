"""What a result depends on besides inputs and params: code, library versions and hardware."""

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
    """Return the SHA-256 of each of the project's modules imported so far, and of each template."""
    loaded = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
    folders = tuple(f"{ROOT}/{name}/" for name in ("align", "checkers", "stages"))
    own = [Path(file) for file in loaded if file.startswith(folders)] + list((ROOT / "prompts").rglob("*.jinja"))
    return {file.relative_to(ROOT).as_posix(): sha256(file) for file in sorted(own)}


def environment(runtime: RuntimeSettings) -> dict[str, Any]:
    """Return versions, device, instruction set and threads, which decide the last bits of a result.

    It goes into outputs, so it must be equal on machines of one type.
    """
    device = runtime.torch_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {
        "python": platform.python_version(),
        **{library: version(library) for library in LIBRARIES},
        **({"bitsandbytes": version("bitsandbytes")} if runtime.needs_bitsandbytes else {}),
        "device": f"{device.type} ({name})",
        "num_threads": runtime.threads,
    }
