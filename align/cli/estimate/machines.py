"""Machines to estimate for: GPUs by their data sheets, this machine's CPU by a calibration that is kept in .align/."""

import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from align.cli.estimate.costs import Kind, Machine, Model
from align.core.errors import InputError
from align.core.files import read_json, write_json

CALIBRATION_FILE = Path(".align/calibration.json")


@dataclass(frozen=True)
class Card:
    """A GPU's data sheet: dense FLOP/s in bfloat16 and in float32 without tensor cores, bytes/s, bytes."""

    bfloat16: float
    float32: float
    bandwidth: float
    memory: float


# NVIDIA's data sheets: A10 (24 GB), A100 SXM 80 GB, H100 SXM, H200 SXM; without sparsity.
CARDS = {
    "A10": Card(125e12, 31.2e12, 600e9, 24e9),
    "A100": Card(312e12, 19.5e12, 2.04e12, 80e9),
    "H100": Card(989e12, 67e12, 3.35e12, 80e9),
    "H200": Card(989e12, 67e12, 4.8e12, 141e9),
}
# What eager PyTorch reaches of them with small batches and adapters: assumed, see docs/RUNNING.md.
UTILISATION: Mapping[Kind, float] = {"forward": 0.4, "decode": 0.4, "train": 0.3}
BANDWIDTH_SHARE = 0.6
LAYER_SECONDS: Mapping[Kind, float] = {"forward": 0.7e-3, "decode": 0.7e-3, "train": 2.5e-3}
NF4_SLOWDOWN = 1.5  # nf4 weights are unpacked at each product
GPU_STARTS = {"prepare_data": 2.0, "build_preferences": 3.0, "diff": 2.0, "summary": 3.0, "default": 15.0}
DEVICES = ("auto", "cpu", *CARDS)


def gpu(name: str, model: Model) -> Machine:
    """Return a GPU by its data sheet."""
    card = CARDS[name]
    slow = NF4_SLOWDOWN if model.quantization == "nf4" else 1.0
    peak = card.bfloat16 if model.dtype == "bfloat16" else card.float32
    return Machine(
        name=name,
        flops={kind: peak * share / slow for kind, share in UTILISATION.items()},
        call_seconds={kind: seconds * slow * model.shape.layers for kind, seconds in LAYER_SECONDS.items()},
        bandwidth=card.bandwidth * BANDWIDTH_SHARE,
        start_seconds=GPU_STARTS,
        load_rate=1e9,
        write_rate=3e8,
        stage_seconds=1.0,
        memory=card.memory,
    )


def detect() -> str:
    """Return the card of this machine by NVIDIA's own tool, or cpu.

    Raises:
        InputError: there is one whose data sheet is not here.
    """
    if shutil.which("nvidia-smi") is None:
        return "cpu"
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return "cpu"
    if not found:
        return "cpu"
    name = found.splitlines()[0]
    words = name.replace("-", " ").split()
    card = next((card for card in CARDS if card in words), None)
    if card is None:
        raise InputError(f"--device auto: {name} is none of {', '.join(CARDS)}; name the one that is nearest")
    return card


@dataclass(frozen=True)
class Calibration:
    """What was measured on this machine, and for what (`key`)."""

    key: dict[str, Any]
    flops: dict[Kind, float]
    call_seconds: dict[Kind, float]
    start_seconds: dict[str, float]
    stage_seconds: float
    load_rate: float
    write_rate: float
    memory: float

    def machine(self) -> Machine:
        """Return it as a machine."""
        return Machine(
            name="cpu",
            flops=self.flops,
            call_seconds=self.call_seconds,
            bandwidth=None,
            start_seconds=self.start_seconds,
            load_rate=self.load_rate,
            write_rate=self.write_rate,
            stage_seconds=self.stage_seconds,
            memory=self.memory,
            measured=True,
        )

    def save(self, path: Path = CALIBRATION_FILE) -> None:
        """Write it for later estimates."""
        write_json(path, asdict(self))


def load_calibration(key: Mapping[str, Any], path: Path = CALIBRATION_FILE) -> Calibration | None:
    """Return what was measured before for `key`; None where there is none, or it is another's, or cannot be read."""
    if not path.is_file():
        return None
    try:
        found = Calibration(**read_json(path))
    except (InputError, TypeError):
        return None
    return found if found.key == json.loads(json.dumps(key)) else None
