"""Check of `align doctor`: the work that killed stages left in .align/resume (see `align.run.work`)."""

import fcntl
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from align.cli.doctor.environment import environment_here
from align.cli.doctor.findings import Finding
from align.cli.project.lock_file import flat
from align.cli.project.units import show_age, show_size
from align.core.errors import InputError
from align.core.files import read_json, sha256
from align.core.params import Params
from align.run.release import DONE_FILE, IDENTITY_FILE, resume_root


def check_unfinished() -> Iterator[Finding]:
    """Report the unfinished work of each stage, and whether a rerun would use it."""
    folders = sorted(folder for folder in resume_root().glob("*/*") if folder.is_dir())
    for folder in folders:
        if any(map(_is_held, folder.glob("lock-*"))):
            yield Finding("unfinished", "ok", f"{folder.parent.name} is running, its work is in {folder}")
            continue
        files = [path.stat() for path in (folder, *folder.rglob("*"))]
        size, age = sum(file.st_size for file in files), time.time() - max(file.st_mtime for file in files)
        work, delete = f"{folder.parent.name}: {show_size(size)}, {show_age(age)} old", f"`rm -rf {folder}`"
        if (folder / DONE_FILE).is_file():
            yield Finding("unfinished", "ok", f"{work}, done; kept until DVC has recorded the outputs")
        elif changes := "; ".join(_changes(folder)):
            yield Finding("unfinished", "differs", f"{work}, which a rerun would not use: {changes}", (delete,))
        else:
            yield Finding("unfinished", "ok", f"{work}: `dvc repro` resumes from it", (f"to delete it: {delete}",))
    if not folders:
        yield Finding("unfinished", "ok", "no stage was killed")


def _is_held(path: Path) -> bool:
    with path.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _changes(folder: Path) -> Iterable[str]:
    """Return what has changed since the work began; if anything has, a rerun starts from scratch."""
    try:
        identity = read_json(folder / IDENTITY_FILE)
        then = {kind: flat(identity[kind]) for kind in ("params", "inputs", "code", "environment")}
    except (InputError, KeyError, AttributeError):
        return ["it has no readable identity"]
    params = Params.read().values
    files = (*then["inputs"], *then["code"], *(path.as_posix() for path in Path("prompts").rglob("*.jinja")))
    hashes = {name: sha256(Path(name)) if Path(name).exists() else None for name in files}
    now = {
        "params": flat({section: params.get(section) for section in identity["params"]}),
        "inputs": {name: hashes[name] for name in then["inputs"]},
        "code": {name: hashes[name] for name in hashes if name not in then["inputs"]},
        "environment": environment_here(),
    }
    keys = {kind: [key for key in then[kind] | now[kind] if then[kind].get(key) != now[kind].get(key)] for kind in now}
    return [f"{kind} changed: {', '.join(names)}" for kind, names in keys.items() if names]
