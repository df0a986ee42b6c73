"""Which objects of a DVC remote the outs of a workspace, or of a revision, are made of."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from align.cli.project.lock_file import Item
from align.core.errors import InputError

DIR = ".dir"


@dataclass(frozen=True)
class Out:
    """An out of a stage, or a file that `dvc add` tracks, as the lock file or the .dvc file has it."""

    path: str
    oid: str  # the object's name; of a folder's list of files it ends with `.dir`
    size: int | None  # bytes; of a folder all its files
    stage: str  # its name, or the .dvc file
    pushed: bool  # False where dvc.yaml says `push: false`
    remote: str | None  # where dvc.yaml gives it a remote of its own


@dataclass
class Needed:
    """An object that outs are made of, one or several with equal content."""

    oid: str
    size: int | None = None  # bytes, if something here tells
    paths: list[str] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)

    def add(self, path: str, stage: str, size: int | None) -> None:
        """Note one more use."""
        self.size = self.size if size is None else size
        self.paths += [path] if path not in self.paths else []
        self.stages += [stage] if stage not in self.stages else []


def outs_of(repo: Any, revisions: Sequence[str] = ()) -> list[Out]:
    """Return the outs that DVC caches, of the workspace or of git revisions.

    Raises:
        InputError: a revision is unknown, a dvc.yaml or dvc.lock cannot be read, or an out is of DVC 2.
    """
    exceptions = import_module("dvc.exceptions")
    found: dict[Out, None] = {}
    try:
        for _ in repo.brancher(revs=list(revisions), workspace=False):
            found |= dict.fromkeys(_out(out) for out in repo.index.outs if _is_cached(out))
    except exceptions.DvcException as error:
        raise InputError(f"DVC cannot list what is to be on the remote: {error}") from None
    return list(found)


def select(outs: Sequence[Out], targets: Iterable[str]) -> list[Out]:
    """Return the outs that targets name: a path, a folder above it, a file in it, its stage or its group of stages.

    Raises:
        InputError: a target names none.
    """
    chosen = []
    for target in targets:
        name = target.removeprefix("./").rstrip("/")
        item = Item(name, "", "md5", 0)
        found = [out for out in outs if _names(name, item, out)]
        if not found:
            known = sorted({out.stage for out in outs})
            raise InputError(f"{target}: no out and no stage of that name; the stages are {', '.join(known)}")
        chosen += found
    return [out for out in outs if out in chosen]


def objects_of(
    outs: Iterable[Out], read_listing: Callable[[str], bytes | None], size_here: Callable[[str], int | None]
) -> dict[str, Needed]:
    """Return the objects of outs by name, those of a folder's files too.

    Args:
        outs: The outs.
        read_listing: Returns the verified bytes of a folder's list of files, or None if nobody has a good one.
        size_here: Returns the size in bytes of an object in the cache here, or None if it is not there.
    """
    objects: dict[str, Needed] = {}
    for out in outs:
        listed = out.oid.endswith(DIR)
        known = size_here(out.oid) if listed else out.size
        objects.setdefault(out.oid, Needed(out.oid)).add(out.path, out.stage, known)
        for path, oid in members(read_listing(out.oid)) if listed else ():
            objects.setdefault(oid, Needed(oid)).add(f"{out.path}/{path}", out.stage, size_here(oid))
    return objects


def members(listing: bytes | None) -> Iterator[tuple[str, str]]:
    """Yield path and object name of each file in a folder's list."""
    for entry in json.loads(listing) if listing is not None else ():
        yield str(entry["relpath"]), str(entry["md5"])


def is_named_rightly(oid: str, content: bytes) -> bool:
    """Tell whether content is what an object's name says."""
    return hashlib.md5(content).hexdigest() == oid.removesuffix(DIR)


def _names(name: str, item: Item, out: Out) -> bool:
    above = Item(out.path, "", "md5", 0)
    return item.holds(out.path) or above.holds(name) or name in (out.stage, out.stage.split("@")[0])


def _is_cached(out: Any) -> bool:
    return bool(out.use_cache and out.is_in_repo and out.hash_info)


def _out(out: Any) -> Out:
    path = out.repo.fs.relpath(out.fs_path, out.repo.root_dir)
    if out.hash_info.name != "md5":
        raise InputError(f"{path}: recorded by DVC 2 ({out.hash_info.name}); run `dvc cache migrate --dvc-files`")
    pushed = bool(out.can_push) and not out.stage.is_repo_import
    file, name = out.stage.path_in_repo, getattr(out.stage, "name", None)
    stage = file if name is None else name if file == "dvc.yaml" else f"{file}:{name}"
    return Out(path, out.hash_info.value, out.meta.size, stage, pushed, out.remote)
