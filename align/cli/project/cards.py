"""What results tell of themselves: model cards, and the environment in the files of measures."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from align.core.errors import InputError
from align.core.files import sha256

CARD_FILE = "model_card.json"


class Source(BaseModel):
    """A file or folder that a model was made from, with its SHA-256 then."""

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
    def read(cls, model_dir: Path) -> "ModelCard":
        """Read the card of a model directory.

        Raises:
            InputError: it has none, or not one that a stage wrote.
        """
        path = model_dir / CARD_FILE
        value = read_object(path)
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(map(str, first["loc"]))
            raise InputError(f"{path}: {key}: {first['msg']}; run `dvc checkout {model_dir}` or `dvc repro`") from None


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: there is none, whatever else is there.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror}); run `dvc checkout` or `dvc repro`") from None
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not JSON ({reason}); run `dvc checkout` or `dvc repro`") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object; run `dvc checkout` or `dvc repro`")
    return value


def recorded_environment(path: Path) -> dict[str, Any] | None:
    """Return the environment that a model directory or a JSON file records, or None if it records none.

    Raises:
        InputError: what is there cannot be read.
    """
    value = read_object(path / CARD_FILE if path.is_dir() else path).get("environment")
    return value if isinstance(value, dict) else None


def source_hash(path: Path) -> str | None:
    """Return the SHA-256 that a card would record of `path` now (of a model, its weights'), or None if it is not here.

    It is `align.models.card.weights_hash` without the libraries that load models.
    """
    if not path.exists():
        return None
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    if not files:
        return sha256(path)
    return sha256(files[0]) if len(files) == 1 else json.dumps({file.name: sha256(file) for file in files})
