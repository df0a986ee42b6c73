"""Checkpoints of a long stage: a run that was killed goes on from the last one, if all it depends on is the same."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stages.lib.errors import InputError
from stages.lib.files import replacing, sha256

CODE = Path(__file__).parents[1]


class Checkpoint:
    """The last checkpoint of a stage: one file, replaced as a whole, at .align/resume/<stage>/ under DVC's root.

    Args:
        stage: its name.
        identity: all that the result follows from (params, seed, hashes of the inputs); the code is added here. A run
            with another identity does not see the file.
    """

    def __init__(self, stage: str, identity: Mapping[str, Any]) -> None:
        code = {path.relative_to(CODE).as_posix(): sha256(path) for path in sorted(CODE.rglob("*.py"))}
        text = json.dumps({"code": code, **identity}, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        folder = Path(os.environ.get("DVC_ROOT", ".")) / ".align" / "resume" / stage
        self.path = folder / f"{digest[:16]}.safetensors"

    def save(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Replace the checkpoint; a kill at any moment leaves the old one or the new one."""
        with replacing(self.path) as temporary:
            values = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
            save_file(values, temporary, metadata={"state": json.dumps(state)})

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the tensors (on the CPU) and the state of the checkpoint, or None if there is none to go on from."""
        try:
            with safe_open(self.path, framework="pt") as stream:
                tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 (not a dict)
                return tensors, json.loads(stream.metadata()["state"])
        except FileNotFoundError:
            return None
        except SafetensorError as error:
            raise InputError(f"{self.path}: cannot read the checkpoint ({error}); delete it to start anew") from None

    def clear(self) -> None:
        """Delete the checkpoint, once the stage's outputs are written."""
        self.path.unlink(missing_ok=True)
