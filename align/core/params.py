"""params.yaml, read into typed, frozen settings: unknown, missing and out-of-range keys are errors with the key."""

import difflib
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from align.core.errors import InputError, quoted
from align.core.files import read_bytes

PARAMS_FILE = Path("params.yaml")
SECTIONS = (
    "seed",
    "runtime",
    "base_model",
    "sources",
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
    "text",
)
# The name of an iteration becomes folders (models/<name>, data/<name>) and part of commands; these are taken there.
MODEL_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
SECRET = "secret"  # the type of a validation error whose value must not be shown
TAKEN_NAMES = ("base", "eval", "metrics", "ppo", "prepared", "reward", "seed", "summary", "text")


class Settings(BaseModel):
    """Base of every section: frozen, no unknown keys, no conversion between types (an int will do for a float).

    A NaN passes every `gt` and `le`, or none, and an infinite rate no comparison helps: neither is a setting.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


S = TypeVar("S", bound=Settings)


class Params:
    """The parsed params.yaml. A stage asks for the sections it declares in dvc.yaml, and for no others.

    `used` holds what it has asked for: all the params that its result follows from.
    """

    def __init__(self, values: dict[str, Any], path: Path = PARAMS_FILE) -> None:
        self.values, self.path = values, path
        self.used: dict[str, Any] = {}
        _check_keys(path, "", values, SECTIONS, required=SECTIONS)
        self._chain()  # every stage writes into folders that are named there, and few of them ask for it

    @classmethod
    def read(cls, path: Path = PARAMS_FILE) -> Self:
        """Read a params file."""
        values = parse(read_bytes(path, "run from the repository's root"), path)
        return cls(values, path)

    @property
    def seed(self) -> int:
        """The run's seed, from which every other seed is derived."""
        seed = self.used["seed"] = self.values["seed"]
        if type(seed) is not int or not 0 <= seed < 2**32:
            raise InputError(f"{self.path}: seed: expected an integer from 0 to 4294967295, got {quoted(seed)}")
        return seed

    @property
    def iterations(self) -> dict[str, str]:
        """The chain of the self-rewarding loop, {model: parent}, in order: it starts at m0 and has no gap."""
        self.used["iterations"] = self.values["iterations"]
        return self._chain()

    def _chain(self) -> dict[str, str]:
        chain = self.values["iterations"]
        if not isinstance(chain, dict) or not chain:
            raise InputError(f"{self.path}: iterations: expected at least one `m1: m0` entry, got {quoted(chain)}")
        known = ["m0"]
        for model, parent in chain.items():
            if not isinstance(model, str) or not MODEL_NAME.fullmatch(model) or model in TAKEN_NAMES:
                raise InputError(
                    f"{self.path}: iterations: {quoted(model)} cannot name a model: folders are named after it; take a "
                    f"letter, then letters, digits, - or _, such as m1, and none of {', '.join(TAKEN_NAMES)}"
                )
            if model in known:
                raise InputError(f"{self.path}: iterations.{model}: is already made by stage sft; start with `m1: m0`")
            if parent not in known:
                raise InputError(
                    f"{self.path}: iterations.{model}: its parent {quoted(parent)} is not one of {', '.join(known)}; "
                    "the parent is m0 or an entry above"
                )
            known.append(model)
        return dict(chain)

    def source(self, name: str, settings: type[S]) -> S:
        """Return entry `name` of section `sources` as `settings`."""
        sources = self.values["sources"]
        if not isinstance(sources, dict):
            raise InputError(f"{self.path}: sources: expected {{}} or entries such as `oasst: {{dataset: ...}}`")
        if not MODEL_NAME.fullmatch(name):
            raise InputError(
                f"{self.path}: sources: {quoted(name)} cannot name a source: a file is named after it; take a letter, "
                "then letters, digits, - or _"
            )
        if name not in sources:
            raise InputError(f"{self.path}: sources.{name}: missing; add it ({', '.join(map(str, sources)) or 'none'})")
        self.used["sources"] = {name: sources[name]}
        return self._checked(f"sources.{name}", sources[name], settings)

    def section(self, name: str, settings: type[S]) -> S:
        """Return section `name` as `settings`."""
        values = self.used[name] = self.values[name]
        return self._checked(name, values, settings)

    def _checked(self, name: str, values: Any, settings: type[S]) -> S:
        if not isinstance(values, dict):
            raise InputError(
                f"{self.path}: {name}: expected keys such as {', '.join(settings.model_fields)}, got {quoted(values)}"
            )
        required = [key for key, field in settings.model_fields.items() if field.is_required()]
        _check_keys(self.path, f"{name}.", values, settings.model_fields, required)
        try:
            return settings.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(str(part) for part in (name, *first["loc"]))
            message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
            if first["type"] in ("extra_forbidden", "missing"):  # of a section within the section
                what = "missing; add it" if first["type"] == "missing" else "unknown key; take it out"
                raise InputError(f"{self.path}: {key}: {what}") from None
            found = "" if first["type"] == SECRET else f", got {quoted(first['input'])}"
            raise InputError(f"{self.path}: {key}: should be {message}{found}") from None


def parse(data: bytes, path: Path) -> dict[str, Any]:
    """Parse with the YAML 1.2 parser that DVC uses, so that `1e-4` is a number for both; `path` is for messages."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an anchor that is used again, which YAML allows
            # The C parser, which DVC uses, dies of text that is nested too deeply.
            values = YAML(typ="safe", pure=True).load(data.decode("utf-8"))
    except (YAMLError, ValueError) as error:  # ValueError: no UTF-8, a date such as 2026-13-45
        raise InputError(f"{path}: not valid YAML: {_problem(error)}; mend it there") from None
    except RecursionError:
        raise InputError(f"{path}: not valid YAML: nested too deeply; mend it there") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected sections such as `seed: 17`, found {type(values).__name__}")
    return values


def _problem(error: YAMLError | ValueError) -> str:
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        context = f"{error.context}, " if error.context else ""
        return f"line {error.problem_mark.line + 1}: {context}{error.problem}"
    return " ".join(str(error).split())


def _check_keys(path: Path, prefix: str, values: dict[str, Any], known: Iterable[str], required: Iterable[str]) -> None:
    known = list(known)
    for key in values:
        if key not in known:
            name = key[:100] if isinstance(key, str) else quoted(key)
            close = difflib.get_close_matches(name, known, n=1)
            hint = f'did you mean "{prefix}{close[0]}"?' if close else f"known keys: {', '.join(known)}"
            raise InputError(f"{path}: {prefix}{name}: unknown key; {hint}")
    for key in required:
        if key not in values:
            raise InputError(f"{path}: {prefix}{key}: missing; add it (recipe: the committed params.yaml)")
