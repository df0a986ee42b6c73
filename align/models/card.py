"""`model_card.json`: the lineage of a model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align.core.errors import InputError
from align.core.files import sha256, write_json
from align.run.provenance import environment
from align.run.stage import Stage


def write_model_card(
    out_dir: Path,
    stage: Stage,
    parents: Mapping[str, Path],
    data: Mapping[str, Path],
    validation: Mapping[str, Any] | None = None,
) -> None:
    """Write `model_card.json`: parents and data with their hashes, params and versions.

    `validation` is what held-out rows showed in training, if there were any.

    Code is tracked in dvc.lock only: an edit that does not change the weights must not rerun all later stages.
    """
    card = {
        "stage": stage.name.partition("@")[0],
        "parents": {role: {"path": path.as_posix(), "sha256": weights_hash(path)} for role, path in parents.items()},
        "data": {role: {"path": path.as_posix(), "sha256": sha256(path)} for role, path in data.items()},
        "params": stage.params.used,
        "environment": environment(stage.runtime),
    }
    if validation:
        card["validation"] = dict(validation)
    write_json(out_dir / "model_card.json", card)


def weights_hash(model_dir: Path) -> str:
    """Return the SHA-256 of a model directory's weights."""
    files = sorted(model_dir.glob("*.safetensors"))
    if not files:
        raise InputError(f"{model_dir}: holds no safetensors weights; run `dvc repro`")
    return sha256(files[0]) if len(files) == 1 else json.dumps({file.name: sha256(file) for file in files})
