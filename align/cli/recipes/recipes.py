"""Recipes: params files for named runs in recipes/, each complete, to list, compare and take as params.yaml."""

import difflib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from align.cli.doctor.repository import running_dvc
from align.cli.project.git import git
from align.cli.project.lock_file import flat
from align.core.errors import InputError, quoted
from align.core.files import read_bytes, replacing
from align.core.params import PARAMS_FILE

RECIPES = Path("recipes")
_HEADER = re.compile(r"# (Recipe [\w.-]+|Hardware|Run): +(\S.*)")
ABSENT = "(none)"  # how a change shows a key that one side has not


@dataclass(frozen=True)
class Recipe:
    """A params file whose first lines tell what it is: `# Recipe NAME: ...`, `# Hardware: ...`, `# Run: ...`."""

    path: Path
    summary: str
    hardware: str
    command: str  # that runs it

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.stem

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the first lines of `path`; one that is not there is an empty text, or `dvc repro`."""
        found = {}
        for line in read_bytes(path).decode("utf-8", errors="replace").splitlines():
            if not line.startswith("#"):
                break
            if match := _HEADER.fullmatch(line.strip()):
                found[match[1].split()[0]] = match[2]
        return cls(path, found.get("Recipe", ""), found.get("Hardware", ""), found.get("Run", "dvc repro"))


@dataclass(frozen=True)
class Change:
    """A key that has another value; as JSON, or `ABSENT`."""

    section: str
    key: str  # within the section; empty where the section is the value
    old: str
    new: str

    @property
    def name(self) -> str:
        """The key with its section."""
        return f"{self.section}.{self.key}" if self.key else self.section


def recipes() -> list[Recipe]:
    """Return all recipes, by name.

    Raises:
        InputError: the working directory has none.
    """
    found = [Recipe.read(path) for path in sorted(RECIPES.glob("*.yaml"), key=lambda path: path.stem)]
    if not found:
        raise InputError(f"{RECIPES}: holds no recipe (NAME.yaml); run from the repository's root")
    return found


def recipe(name: str) -> Recipe:
    """Return the recipe of that name.

    Raises:
        InputError: there is none; the message has those whose names are close, or all of them.
    """
    known = {one.name: one for one in recipes()}
    if name not in known:
        close = [other for other in known if name and name in other] or difflib.get_close_matches(
            name, known, cutoff=0.7
        )
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(known)}"
        raise InputError(f"no recipe is named {quoted(name)}; {hint}")
    return known[name]


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Return what is different in `new`, by section in the order of the file; 1 and 1.0 are equal, as to DVC."""
    before, after = flat(old), flat(new)
    sections = list(dict.fromkeys((*new, *old)))
    keys = sorted(dict.fromkeys((*after, *before)), key=lambda key: sections.index(key.partition(".")[0]))
    found = []
    for key in keys:
        a, b = before.get(key, ABSENT), after.get(key, ABSENT)
        same = a == b and isinstance(a, bool) == isinstance(b, bool)
        nothing = {} in (a, b) and any(other.startswith(f"{key}.") for other in keys)  # its entries are told by name
        if not same and not nothing:
            section, _, rest = key.partition(".")
            found.append(Change(section, rest, _show(a), _show(b)))
    return found


def stages_reading(sections: Collection[str]) -> list[str]:
    """Return the stages of all dvc.yaml files that take one of `sections` as a param, as `dvc repro` names them."""
    found = []
    for path in (Path("dvc.yaml"), *sorted(Path().glob("*/dvc.yaml"))):
        prefix = "" if path.parent == Path() else f"{path}:"
        for name, stage in _stages(path).items():
            listed = [key for entry in stage.get("do", stage).get("params", ()) for key in _keys(entry)]
            if any(str(key).partition(".")[0] in sections for key in listed):
                found.append(f"{prefix}{name}")
    return found


def in_the_way() -> str | None:
    """Return why params.yaml should not be overwritten now, and what to do; None if nothing would be lost."""
    if running := running_dvc():
        what = "; ".join(f"PID {pid}: {command}" for pid, command in running.items())
        return f"DVC is running ({what}), and its next stages would read other params; wait for it"
    if not PARAMS_FILE.exists():
        return None
    data = read_bytes(PARAMS_FILE)
    if any(read_bytes(one.path) == data for one in recipes()):
        return None
    if git("ls-files", "--error-unmatch", str(PARAMS_FILE)) is None:
        return "git does not keep the one that is here; `git add` and commit it"
    if git("status", "--porcelain", "--", str(PARAMS_FILE)) != "":
        killed = "" if git("symbolic-ref", "-q", "HEAD") else " (HEAD is detached: see `align doctor` first)"
        return f"it has uncommitted edits{killed}; see `git diff {PARAMS_FILE}`, then commit them"
    return None


def take(one: Recipe) -> None:
    """Write the recipe's bytes as params.yaml, whole or not at all."""
    data = read_bytes(one.path)
    try:
        with replacing(PARAMS_FILE) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise InputError(f"{PARAMS_FILE}: cannot write ({error.strerror})") from None


def _stages(path: Path) -> Mapping[str, Any]:
    try:
        stages = YAML(typ="safe").load(read_bytes(path).decode("utf-8"))["stages"]
        return {str(name): dict(stage) for name, stage in stages.items()}
    except (YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: not as DVC takes it ({' '.join(str(error).split())}); mend it there") from None


def _keys(entry: Any) -> Iterable[Any]:
    """Return the keys of an entry of `params`: one by itself, or a list of them under its file."""
    return [key for keys in entry.values() for key in keys or ()] if isinstance(entry, dict) else [entry]


def _show(value: Any) -> str:
    return ABSENT if value == ABSENT else json.dumps(value, ensure_ascii=False, default=str)
