"""dvc.lock as a graph: which stage made a file or a folder, and from what."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from align.cli.project.dvc import LOCK_FILE as LOCK_FILE
from align.core.errors import InputError
from align.core.params import PARAMS_FILE

CODE = ("align/", "checkers/", "prompts/", "stages/")  # files or whole folders


@dataclass(frozen=True)
class Item:
    """A dependency or an output of a stage, as it was when the stage ran; the hash of a folder ends with `.dir`."""

    path: str
    hash: str
    size: int  # bytes

    def holds(self, path: str) -> bool:
        """Return whether `path` is this item or lies in it."""
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
        """The dependencies that are code or templates of this project."""
        return [dep for dep in self.deps if f"{dep.path}/".startswith(CODE)]

    @property
    def inputs(self) -> list[Item]:
        """All other dependencies."""
        return [dep for dep in self.deps if not f"{dep.path}/".startswith(CODE)]


@dataclass(frozen=True)
class Lock:
    """All stages of the lock file, by name."""

    stages: Mapping[str, Stage]

    @classmethod
    def read(cls) -> Self:
        """Read dvc.lock, as DVC 3 writes it."""
        try:
            text = LOCK_FILE.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise InputError(f"{LOCK_FILE}: no such file; run from the repository's root, after `dvc repro`") from None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{LOCK_FILE}: cannot read ({error}); run `git checkout -- {LOCK_FILE}`") from None
        return cls.parse(text)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the text of a lock file."""
        try:
            stages = YAML(typ="safe").load(text)["stages"]
            return cls({name: _stage(name, entry) for name, entry in stages.items()})
        except YAMLError as error:
            if "\n<<<<<<< " in f"\n{text}":
                raise InputError(
                    f"{LOCK_FILE}: a merge left its marks in it; `align doctor` has the commands"
                ) from None
            reason = " ".join(str(error).split())
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            reason = f"not a lock file of DVC: {error}"
        raise InputError(f"{LOCK_FILE}: {reason}; run `git checkout -- {LOCK_FILE}` or `dvc repro`")

    def maker(self, path: str) -> tuple[Stage, Item] | None:
        """Return the stage that made `path`, with the output that is `path` or holds it."""
        makers = ((stage, out) for stage in self.stages.values() for out in stage.outs if out.holds(path))
        return next(makers, None)

    def outs_in(self, folder: str) -> list[Item]:
        """Return the outputs of all stages that lie in `folder`, sorted by path."""
        outs = [out for stage in self.stages.values() for out in stage.outs if out.path.startswith(f"{folder}/")]
        return sorted(outs, key=lambda out: out.path)

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
    deps, outs = (tuple(map(_item, entry.get(key) or ())) for key in ("deps", "outs"))
    return Stage(name, command if isinstance(command, str) else " && ".join(command), deps, params, outs)


def _item(entry: Mapping[str, Any]) -> Item:
    return Item(str(entry["path"]), str(entry["md5"]), int(entry.get("size") or 0))
