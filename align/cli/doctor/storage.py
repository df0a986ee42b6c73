"""Checks of `align doctor`: dvc.lock, disk, memory, and objects of the cache whose content is not what they name."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

from align.cli.doctor.findings import Finding
from align.cli.project.dvc import DvcFiles
from align.cli.project.lock_file import LOCK_FILE, Lock
from align.cli.project.units import show_size
from align.cli.remotes.objects import md5, needed_objects
from align.core.errors import InputError

BASE = "models/base"


def check_storage() -> Iterator[Finding]:
    """Check that dvc.lock is whole, and that disk and memory have room for what it lists."""
    try:
        lock = Lock.read()
    except InputError as error:  # DVC writes it in place, and does nothing with half of it
        steps = (f"`git restore {LOCK_FILE}`", "`dvc repro`: stages that had finished come from DVC's run cache")
        merged = "a merge left" in error.message  # `check_conflicts` has said what to do
        yield Finding("lock_file", "problem", error.message.partition("; run ")[0], () if merged else steps)
        return
    yield Finding("lock_file", "ok", f"{LOCK_FILE} lists {len(lock.stages)} stages")

    outs = sum(out.size for stage in lock.stages.values() for out in stage.outs)
    cache = DvcFiles().cache
    cache.mkdir(parents=True, exist_ok=True)
    free = min(shutil.disk_usage(path).free for path in (Path.cwd(), cache))
    yield _room("disk", free, "a whole rerun writes", outs, "`dvc gc -w` deletes what this workspace does not need")
    base = lock.maker(BASE)
    free = psutil.virtual_memory().available
    yield _room("memory", free, f"{BASE} takes", base[1].size if base else 0, "use a smaller base or bfloat16")


def _room(check: str, free: int, what: str, needed: int, step: str) -> Finding:
    room = f"{show_size(free)} free, {what} {show_size(needed)}"
    return Finding(check, "ok", room) if free >= needed else Finding(check, "problem", room, (step,))


def check_cache() -> Iterator[Finding]:
    """Hash every object of the cache: DVC trusts read-only ones, and hands out whatever is in them."""
    files = DvcFiles()
    objects = [path for path in sorted(files.cache.glob("??/*")) if len(path.stem) == 30]  # no temporary file
    corrupt = [path for path in objects if md5(path) != path.parent.name + path.stem]
    needed = needed_objects(files.repo, files.cache) if corrupt else {}
    for path in corrupt:
        oid = path.parent.name + path.name
        what, remove = f"{os.path.relpath(path)} is corrupt", f"`rm -f {os.path.relpath(path)}`"
        if oid not in needed:
            yield Finding("cache", "problem", f"{what}, and nothing here needs it", (remove,))
            continue
        name, stage = needed[oid].paths[0], needed[oid].stages[0]
        restore = f"`dvc pull {name}`, or without a remote `dvc repro {stage}`"
        if files.hash(name) == oid:
            restore = f"`dvc commit -f {stage}`: the workspace has it undamaged"
        yield Finding("cache", "problem", f"{what}: {name} of stage {stage}", (remove, restore))
    if not corrupt:
        yield Finding("cache", "ok", f"all {len(objects)} objects match their hash")
