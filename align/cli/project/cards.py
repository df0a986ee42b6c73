"""What results record about themselves: model cards, and the environment of a run."""

import json
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ValidationError

from align.core.errors import InputError
from align.core.files import REBUILD, read_json, sha256

CARD_FILE = "model_card.json"


class Source(BaseModel):
    """A file or folder that a model was made from, with the SHA-256 that it had then."""

    path: str
    sha256: str


class ModelCard(BaseModel):
    """`model_card.json`. The first cards had no `environment`."""

    stage: str
    parents: dict[str, Source] = {}
    data: dict[str, Source] = {}
    params: dict[str, Any] = {}
    environment: dict[str, Any] | None = None

    @classmethod
    def read(cls, model_dir: Path) -> Self:
        """Read the card of a model directory."""
        path = model_dir / CARD_FILE
        try:
            return cls.model_validate(read_json(path))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(map(str, first["loc"]))
            raise InputError(f"{path}: {key}: {first['msg']}; {REBUILD}") from None


def recorded_environment(path: Path) -> dict[str, Any] | None:
    """Return the environment that a model directory or a JSON file records, or None."""
    environment = read_json(path / CARD_FILE if path.is_dir() else path).get("environment")
    return environment if isinstance(environment, dict) else None


def source_hash(path: Path) -> str | None:
    """Return the SHA-256 that a card would record for `path` now, or None if nothing is there.

    It equals `align.models.card.weights_hash` without loading the libraries for models.
    """
    if not path.exists():
        return None
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        return sha256(path)
    return sha256(weights[0]) if len(weights) == 1 else json.dumps({file.name: sha256(file) for file in weights})
