"""params.yaml, read into typed, frozen settings: unknown, missing and out-of-range keys are errors with the key."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.lib.errors import InputError

PARAMS_FILE = Path("params.yaml")
SECTIONS = (
    "seed",
    "runtime",
    "base_model",
    "prepare_data",
    "lora",
    "eft",
    "sft",
    "iterations",
    "generation",
    "generate_prompts",
    "generate_responses",
    "judge",
    "gates",
    "build_preferences",
    "dpo",
    "reward_model",
    "ppo",
    "evaluate",
)


class Settings(BaseModel):
    """Base of every section: frozen, no unknown keys, no conversion between types (an int will do for a float)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


S = TypeVar("S", bound=Settings)


class Params:
    """The parsed params.yaml. A stage asks for the sections it declares in dvc.yaml, and for no others.

    `used` holds what it has asked for: all the params that its result follows from.
    """

    def __init__(self, values: dict[str, Any], path: Path = PARAMS_FILE) -> None:
        self.values, self.path = values, path
        self.used: dict[str, Any] = {}
        _check_keys(path, "", values, SECTIONS, required=SECTIONS)

    @classmethod
    def read(cls, path: Path = PARAMS_FILE) -> Self:
        """Read `path` with the YAML 1.2 parser that DVC uses, so that `1e-4` is a number for both."""
        try:
            values = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; run from the repository's root") from None
        except (YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict):
            raise InputError(f"{path}: expected sections such as `seed: 17`, found {type(values).__name__}")
        return cls(values, path)

    @property
    def seed(self) -> int:
        """The run's seed, from which every other seed is derived."""
        seed = self.used["seed"] = self.values["seed"]
        if type(seed) is not int or not 0 <= seed < 2**32:
            raise InputError(f"{self.path}: seed: expected an integer from 0 to 4294967295, got {seed!r}")
        return seed

    @property
    def iterations(self) -> dict[str, str]:
        """The chain of the self-rewarding loop, {model: parent}, in order: it starts at m0 and has no gap."""
        chain = self.used["iterations"] = self.values["iterations"]
        if not isinstance(chain, dict) or not chain:
            raise InputError(f"{self.path}: iterations: expected at least one `m1: m0` entry, got {chain!r}")
        known = ["m0"]
        for model, parent in chain.items():
            if model in known:
                raise InputError(f"{self.path}: iterations.{model}: is already made by stage sft; start with `m1: m0`")
            if parent not in known:
                raise InputError(
                    f"{self.path}: iterations.{model}: its parent {parent!r} is not one of {', '.join(known)}"
                )
            known.append(model)
        return dict(chain)

    def section(self, name: str, settings: type[S]) -> S:
        """Return section `name` as `settings`."""
        values = self.used[name] = self.values[name]
        if not isinstance(values, dict):
            raise InputError(
                f"{self.path}: {name}: expected keys such as {', '.join(settings.model_fields)}, got {values!r}"
            )
        required = [key for key, field in settings.model_fields.items() if field.is_required()]
        _check_keys(self.path, f"{name}.", values, settings.model_fields, required)
        try:
            return settings.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(str(part) for part in (name, *first["loc"]))
            message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
            raise InputError(f"{self.path}: {key}: should be {message}, got {first['input']!r}") from None


def _check_keys(path: Path, prefix: str, values: dict[str, Any], known: Iterable[str], required: Iterable[str]) -> None:
    known = list(known)
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f'did you mean "{prefix}{close[0]}"?' if close else f"known keys: {', '.join(known)}"
            raise InputError(f"{path}: {prefix}{key}: unknown key; {hint}")
    for key in required:
        if key not in values:
            raise InputError(f"{path}: {prefix}{key}: missing; add it (recipe: the committed params.yaml)")
