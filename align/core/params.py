"""params.yaml as typed, frozen settings; errors name the key that is unknown, missing or out of range."""

import difflib
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
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
    "offline_dpo",
    "reward_model",
    "ppo",
    "evaluate",
    "text",
)
OPTIONAL = ("lora",)  # sections that may be null
MODEL_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
SECRET = "secret"  # the type of a validation error whose value must not be shown
# Iterations name folders (models/<name>, data/<name>), where these names are taken.
TAKEN_NAMES = (
    *("base", "diff", "dpo", "eval", "metrics", "ppo", "prepared", "reward", "seed", "sources", "summary", "text"),
)


class Settings(BaseModel):
    """Base of every section: frozen, no unknown keys, no type conversion except int to float, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def whole_steps(value: float) -> float:
    """Check a number of steps, as transformers has it: below 1 a share of all, and from 1 on whole."""
    if value > 1 and value != int(value):
        raise ValueError("a share of all steps, below 1, or a whole number of steps")
    return value


WarmupSteps = Annotated[float, Field(ge=0), AfterValidator(whole_steps)]  # below 1, a share of all steps

S = TypeVar("S", bound=Settings)


class Params:
    """The parsed params.yaml. A stage reads only the sections that it declares in dvc.yaml.

    `used` collects what it has read: all the params that its result depends on.
    """

    def __init__(self, values: dict[str, Any], path: Path = PARAMS_FILE) -> None:
        self.values, self.path = values, path
        self.used: dict[str, Any] = {}
        _check_keys(path, "", values, SECTIONS, required=SECTIONS)
        self._check_references(self._chain())  # for every stage: a run that starts should be able to end

    @classmethod
    def read(cls, path: Path = PARAMS_FILE) -> Self:
        """Read a params file."""
        return cls(parse(read_bytes(path, "run from the repository's root"), path), path)

    @property
    def seed(self) -> int:
        """The seed from which all others are derived."""
        seed = self.used["seed"] = self.values["seed"]
        if type(seed) is not int or not 0 <= seed < 2**32:
            raise InputError(f"{self.path}: seed: expected an integer from 0 to 4294967295, got {quoted(seed)}")
        return seed

    @property
    def iterations(self) -> dict[str, str]:
        """The self-rewarding loop as {model: parent}, in order; each parent is m0, dpo or an earlier entry."""
        self.used["iterations"] = self.values["iterations"]
        return self._chain()

    def _chain(self) -> dict[str, str]:
        chain = self.values["iterations"]
        if not isinstance(chain, dict) or not chain:
            raise InputError(f"{self.path}: iterations: expected at least one `m1: m0` entry, got {quoted(chain)}")
        known = ["m0", "dpo"]
        for model, parent in chain.items():
            if not isinstance(model, str) or not MODEL_NAME.fullmatch(model) or model in TAKEN_NAMES:
                raise InputError(
                    f"{self.path}: iterations: {quoted(model)} cannot name a model: folders are named after it; use a "
                    f"letter, then letters, digits, - or _, such as m1, and none of {', '.join(TAKEN_NAMES)}"
                )
            if model in known:
                raise InputError(f"{self.path}: iterations.{model}: is already made by stage sft; start with `m1: m0`")
            if parent not in known:
                raise InputError(
                    f"{self.path}: iterations.{model}: its parent {quoted(parent)} is not one of {', '.join(known)}; "
                    "the parent is m0, dpo or an entry above"
                )
            known.append(model)
        return dict(chain)

    def _check_references(self, chain: dict[str, str]) -> None:
        """Check the values that name an entry of another section: a model, or a source."""
        before_dpo = ["m0"]  # what does not start from models/dpo
        for model, parent in chain.items():
            if parent in before_dpo:
                before_dpo.append(model)
        if self.values["lora"] is None:
            self._check_full_weights()
        starts = {"ppo": ["m0", "dpo", *chain], "offline_dpo": before_dpo}
        for section in ("prepare_data", "judge", "offline_dpo", "ppo", "text"):
            for key, value in self._items(section):
                path = Path(value) if isinstance(value, str) else Path()
                if (section, key) == ("judge", "model") and value not in ("m0", "reward"):
                    raise InputError(
                        f"{self.path}: judge.model: {quoted(value)} is not one of m0, reward (no iteration can wait "
                        "for a model that is made from it); judge.use_parent: true lets each iteration's parent judge"
                    )
                if key == "init" and value not in starts[section]:
                    raise InputError(
                        f"{self.path}: {section}.init: {quoted(value)} is not one of {', '.join(starts[section])}; "
                        "name one of them, or add it to iterations"
                    )
                if path.parent == Path("data/sources") and path.stem not in dict(self._items("sources")):
                    raise InputError(
                        f"{self.path}: {section}.{key}: sources has no {quoted(path.stem)}, which would write {path}; "
                        "add the entry, or name another file"
                    )

    def _check_full_weights(self) -> None:
        for section, key, plain in (
            ("runtime", "quantization", "none"),
            ("eft", "loraplus_lr_ratio", 1),
            ("reward_model", "loraplus_lr_ratio", 1),
        ):
            value = dict(self._items(section)).get(key, plain)
            if value != plain:
                raise InputError(
                    f"{self.path}: {section}.{key}: {quoted(value)} is for adapters, and section lora is null, which "
                    f"trains all weights; set {plain}, or keys of lora"
                )

    def _items(self, section: str) -> list[tuple[str, Any]]:
        values = self.values[section]
        return list(values.items()) if isinstance(values, dict) else []

    def source(self, name: str, settings: type[S]) -> S:
        """Return entry `name` of section `sources` as `settings`."""
        sources = self.values["sources"]
        if not isinstance(sources, dict):
            raise InputError(f"{self.path}: sources: expected {{}} or entries such as `oasst: {{dataset: ...}}`")
        if not MODEL_NAME.fullmatch(name):
            raise InputError(
                f"{self.path}: sources: {quoted(name)} cannot name a source: a file is named after it; use a letter, "
                "then letters, digits, - or _"
            )
        if name not in sources:
            raise InputError(f"{self.path}: sources.{name}: missing; add it ({', '.join(map(str, sources)) or 'none'})")
        self.used["sources"] = {name: sources[name]}
        return self._checked(f"sources.{name}", sources[name], settings)

    def optional_section(self, name: str, settings: type[S]) -> S | None:
        """Return section `name`, one of `OPTIONAL`, as `settings`; None where it is null."""
        self.used[name] = self.values[name]
        return None if self.values[name] is None else self.section(name, settings)

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
                what = "missing; add it" if first["type"] == "missing" else "unknown key; remove it"
                raise InputError(f"{self.path}: {key}: {what}") from None
            got = "" if first["type"] == SECRET else f", got {quoted(first['input'])}"
            raise InputError(f"{self.path}: {key}: should be {message}{got}") from None


def parse(data: bytes, path: Path) -> dict[str, Any]:
    """Parse YAML 1.2 as DVC does, so that `1e-4` is a number for both; `path` is for messages."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about reused anchors, which YAML allows
            # DVC's C parser crashes on deep nesting.
            values = YAML(typ="safe", pure=True).load(data.decode("utf-8"))
    except (YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date such as 2026-13-45
        fix = "keep one side of the merge, and no mark" if b"<<<<<<< " in data else "correct the file"
        raise InputError(f"{path}: not valid YAML: {_problem(error)}; {fix}") from None
    except RecursionError:
        raise InputError(f"{path}: not valid YAML: nested too deeply; correct the file") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected sections such as `seed: 17`, got {type(values).__name__}")
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
