"""dvc.lock as a graph: which stage made a file or a folder, and from what."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from align.core.errors import InputError
from align.core.params import PARAMS_FILE

LOCK_FILE = Path("dvc.lock")
CODE = ("align/", "prompts/", "stages/")  # where deps are code


@dataclass(frozen=True)
class Item:
    """A dep or an out of a stage, as it was when the stage ran; `hash` ends with `.dir` for a folder."""

    path: str
    hash: str
    algorithm: str  # md5, or md5-dos2unix in lock files of DVC 2
    size: int  # bytes

    def holds(self, path: str) -> bool:
        """Tell whether `path` is this one, or lies in it."""
        return path == self.path or path.startswith(f"{self.path}/")


@dataclass(frozen=True)
class Stage:
    """A stage's last run."""

    name: str
    command: str
    deps: tuple[Item, ...]
    params: Mapping[str, Any]  # by dotted key
    outs: tuple[Item, ...]

    @property
    def code(self) -> list[Item]:
        """The deps that are this project's code and templates."""
        return [dep for dep in self.deps if dep.path.startswith(CODE)]

    @property
    def inputs(self) -> list[Item]:
        """All other deps."""
        return [dep for dep in self.deps if not dep.path.startswith(CODE)]


@dataclass(frozen=True)
class Lock:
    """All stages of a lock file, by name."""

    stages: Mapping[str, Stage]
    path: Path = LOCK_FILE

    @classmethod
    def read(cls, path: Path = LOCK_FILE) -> Self:
        """Read a lock file.

        Raises:
            InputError: there is none, or it is no lock file of DVC 2 or 3.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; run from the repository's root, after `dvc repro`") from None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot read ({error}); run `git checkout -- {path}`") from None
        return cls.parse(text, path)

    @classmethod
    def parse(cls, text: str, path: Path = LOCK_FILE) -> Self:
        """Parse the text of a lock file; `path` is for messages.

        Raises:
            InputError: it is no lock file of DVC 2 or 3.
        """
        try:
            stages = YAML(typ="safe").load(text)["stages"]
            return cls({name: _stage(name, entry) for name, entry in stages.items()}, path)
        except YAMLError as error:
            reason = " ".join(str(error).split())
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            reason = f"not as DVC writes it: {error}"
        raise InputError(f"{path}: {reason}; run `git checkout -- {path}` or `dvc repro`")

    def maker(self, path: str) -> tuple[Stage, Item] | None:
        """Return the stage that made `path`, with the out that is `path` or holds it."""
        for stage in self.stages.values():
            for out in stage.outs:
                if out.holds(path):
                    return stage, out
        return None

    def outs_in(self, folder: str) -> list[Item]:
        """Return the outs of all stages that lie in `folder`, sorted by path."""
        found = [out for stage in self.stages.values() for out in stage.outs if out.path.startswith(f"{folder}/")]
        return sorted(found, key=lambda out: out.path)

    def readers(self, path: str) -> list[str]:
        """Return the names of the stages that depend on `path`."""
        return [stage.name for stage in self.stages.values() if any(dep.holds(path) for dep in stage.deps)]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, by dotted key."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def _stage(name: str, entry: Mapping[str, Any]) -> Stage:
    command = entry["cmd"]
    params: dict[str, Any] = {}
    for file, values in (entry.get("params") or {}).items():
        params |= flat(values, "" if file == str(PARAMS_FILE) else f"{file}:")
    return Stage(
        name,
        command if isinstance(command, str) else " && ".join(command),
        tuple(_item(dep) for dep in entry.get("deps") or ()),
        params,
        tuple(_item(out) for out in entry.get("outs") or ()),
    )


def _item(entry: Mapping[str, Any]) -> Item:
    algorithm = entry.get("hash", "md5-dos2unix")
    value = entry.get("md5") or entry.get(algorithm)
    return Item(str(entry["path"]), str(value), algorithm, int(entry.get("size") or 0))
