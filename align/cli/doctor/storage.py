"""Checks of `align doctor`: disk, memory, unfinished work, objects of the cache that are not what their name says."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

from align.cli.doctor.findings import Finding
from align.cli.doctor.unfinished import all_work
from align.cli.project.dvc import DvcFiles
from align.cli.project.lock_file import LOCK_FILE, Lock
from align.cli.project.units import show_size

BASE = "models/base"
HASH_LENGTH = 32


def check_disk() -> Iterator[Finding]:
    """Compare the free space with what a whole rerun can write."""
    outs = sum(out.size for stage in Lock.read().stages.values() for out in stage.outs)
    cache = DvcFiles().cache
    cache.mkdir(parents=True, exist_ok=True)
    for name, path in (("here", Path.cwd()), ("in the cache", cache)):
        free = shutil.disk_usage(path).free
        if free < outs:
            what = f"{show_size(free)} free {name}, and a whole rerun writes {show_size(outs)}"
            yield Finding("disk", "problem", what, ("`dvc gc -w` deletes what this workspace does not need",))
            return
    free = min(shutil.disk_usage(path).free for path in (Path.cwd(), cache))
    yield Finding("disk", "ok", f"{show_size(free)} free, a whole rerun writes {show_size(outs)}")


def check_memory() -> Iterator[Finding]:
    """Compare the free memory with the base model, which nearly all stages load."""
    found = Lock.read().maker(BASE)
    needed = found[1].size if found else 0
    free = psutil.virtual_memory().available
    if free < needed:
        what = f"{show_size(free)} of memory free, {BASE} alone takes {show_size(needed)}"
        yield Finding("memory", "problem", what, ("end other programs, or take a smaller base or bfloat16",))
    else:
        yield Finding("memory", "ok", f"{show_size(free)} free, {BASE} takes {show_size(needed)}")


def check_unfinished() -> Iterator[Finding]:
    """Count the work of killed stages."""
    works = all_work()
    if not works:
        yield Finding("unfinished", "ok", "no work of killed stages")
        return
    running = sum(bool(work.running) for work in works)
    size = show_size(sum(work.size for work in works))
    what = f"work of {len(works)} runs ({running} running), {size}: `dvc repro` goes on from it"
    yield Finding("unfinished", "ok", what, ("`align resume list` shows it",))


def check_cache() -> Iterator[Finding]:
    """Hash each object of the cache: DVC trusts those that are read-only and hands out whatever is in them."""
    cache = DvcFiles().cache
    objects = [path for path in sorted(cache.glob("??/*")) if len(path.parent.name + path.stem) == HASH_LENGTH]
    owners = _owners(cache)
    broken = 0
    for path in objects:
        name = path.parent.name + path.stem
        if _md5(path) != name:
            broken += 1
            yield _corrupt(path, owners.get(path.parent.name + path.name))
    if not broken:
        yield Finding("cache", "ok", f"{len(objects)} objects are what their names say")


def _corrupt(path: Path, owner: tuple[str, str, str] | None) -> Finding:
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    remove = f"`rm -f {shown}`"
    if owner is None:
        return Finding(
            "cache", "problem", f"{shown} is corrupt; it is of an older run, nothing here needs it", (remove,)
        )
    stage, out, file = owner
    what = f"{shown} is corrupt: {file} of stage {stage}"
    value = path.parent.name + path.name
    if (_md5(Path(file)) if Path(file).is_file() else DvcFiles().hash(file)) == value:
        return Finding(
            "cache", "problem", f"{what}, which is whole in the workspace", (remove, f"`dvc commit -f {stage}`")
        )
    return Finding("cache", "problem", what, (remove, f"`dvc pull {out}`, or without a remote `dvc repro {stage}`"))


def _owners(cache: Path) -> dict[str, tuple[str, str, str]]:
    """Return stage, out and file of each object that the lock file needs."""
    found: dict[str, tuple[str, str, str]] = {}
    for stage in Lock.read().stages.values() if LOCK_FILE.is_file() else ():
        for out in stage.outs:
            found[out.hash] = stage.name, out.path, out.path
            try:
                listing = cache / out.hash[:2] / out.hash[2:]
                files = json.loads(listing.read_bytes()) if out.hash.endswith(".dir") else []
                for file in files:
                    found[file["md5"]] = stage.name, out.path, f"{out.path}/{file['relpath']}"
            except (OSError, ValueError, KeyError, TypeError):
                continue  # not here, or corrupt itself
    return found


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()
