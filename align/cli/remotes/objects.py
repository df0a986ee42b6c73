"""The objects that outs are made of: files of a cache or a remote, named after the md5 of their content."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from align.core.errors import InputError

DIR = ".dir"  # ends the name of a folder's object, which lists its files


@dataclass
class Needed:
    """An object of one out or several."""

    oid: str
    size: int | None  # bytes, if dvc.lock or the cache knows
    paths: list[str] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)  # or .dvc files


def needed_objects(
    repo: Any,
    cache: Path,
    targets: Sequence[str] = (),
    revisions: Sequence[str] = (),
    download: Callable[[str], bytes] = lambda oid: b"",
    wanted: Callable[[str, Any], bool] = lambda path, out: True,
) -> dict[str, Needed]:
    """Return the objects of the outs that DVC caches, by name, with those of the files in folders.

    `targets` are as for `dvc push`. `download` returns the object of a folder that the cache lacks; without it the
    folder's files are unknown. `wanted` selects outs, by path and DVC's object.

    Raises:
        InputError: a target or a revision is unknown, or DVC cannot read its files.
    """
    objects: dict[str, Needed] = {}

    def members(oid: str) -> list[dict[str, str]]:
        path = cached(cache, oid)
        content = path.read_bytes() if path else download(oid)
        whole = hashlib.md5(content).hexdigest() == oid.removesuffix(DIR)
        files: list[dict[str, str]] = json.loads(content) if whole else []
        return files

    def add(oid: str, size: int | None, path: str, stage: str) -> None:
        here = cache / oid[:2] / oid[2:]
        size = here.stat().st_size if size is None and here.is_file() else size
        needed = objects.setdefault(oid, Needed(oid, size))
        needed.paths += [path] if path not in needed.paths else []
        needed.stages += [stage] if stage not in needed.stages else []

    try:
        for _ in repo.brancher(revs=list(revisions), workspace=False):
            for out in sorted(repo.index.targets_view(list(targets) or None).outs, key=str):
                path = repo.fs.relpath(out.fs_path, repo.root_dir)
                if out.use_cache and out.is_in_repo and out.hash_info and wanted(path, out):
                    oid, folder = out.hash_info.value, out.hash_info.isdir
                    names = (out.stage.path_in_repo, getattr(out.stage, "name", None))
                    stage = ":".join(filter(None, names)).removeprefix("dvc.yaml:")
                    add(oid, None if folder else out.meta.size, path, stage)
                    for file in members(oid) if folder else ():
                        add(file["md5"], None, f"{path}/{file['relpath']}", stage)
    except import_module("dvc.exceptions").DvcException as error:
        raise InputError(f"DVC cannot list the outs: {error}") from None
    return objects


def cached(cache: Path, oid: str) -> Path | None:
    """Return the file of an object in the cache, or None if it is absent or damaged."""
    path = cache / oid[:2] / oid[2:]
    # DVC's own check deletes a damaged object and trusts a read-only one.
    return path if path.is_file() and md5(path) == oid.removesuffix(DIR) else None


def md5(path: Path) -> str:
    """Return the md5 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()
