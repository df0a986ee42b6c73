"""Check of `align doctor`: the work that killed stages left in .align/resume (see `align.run.work`)."""

import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

from align.cli.doctor.findings import Finding
from align.cli.project.units import show_age, show_size
from align.run.release import DONE_FILE, resume_root


def check_unfinished() -> Iterator[Finding]:
    """Report the unfinished work of each stage."""
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
        else:
            what = f"{work}: `dvc repro` resumes from it unless code, params, inputs or libraries have changed"
            yield Finding("unfinished", "ok", what, (f"to delete it: {delete}",))
    if not folders:
        yield Finding("unfinished", "ok", "no stage was killed")


def _is_held(path: Path) -> bool:
    with path.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
