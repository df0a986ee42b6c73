"""The git commit that brought a result into dvc.lock."""

import subprocess
from dataclasses import dataclass

from align.cli.project.dvc import LOCK_FILE
from align.cli.project.lock_file import Item, Lock, Stage
from align.core.errors import InputError


@dataclass(frozen=True)
class Revision:
    """The commit of a stage's run; `commit` is None if no commit has its output, or there is no git."""

    commit: str | None  # short hash
    committed: bool  # whether HEAD's lock file has exactly this entry of the stage


def git(*arguments: str) -> str | None:
    """Return what `git ...` prints, or None if it fails or git is not installed."""
    try:
        result = subprocess.run(["git", *arguments], capture_output=True, check=False)
    except OSError:
        return None
    return result.stdout.decode(errors="replace").rstrip("\n") if result.returncode == 0 else None


class Revisions:
    """The history of dvc.lock."""

    def __init__(self) -> None:
        try:
            self.head = Lock.parse(_lock_at("HEAD") or "stages: {}").stages
        except InputError:
            self.head = {}

    def of(self, stage: Stage, out: Item) -> Revision:
        """Return the last commit that brought the present hash of a stage's output into the lock file."""
        # DVC writes the path just before the hash, which distinguishes files of equal content.
        needle = f"path: {out.path}\n      hash: md5\n      md5: {out.hash}\n"
        for commit in (git("log", f"-S{needle}", "--format=%h", "--", str(LOCK_FILE)) or "").split():
            # git also lists commits that add or remove a stage which reads the output.
            if needle not in _lock_at(f"{commit}^") and needle in f"{_lock_at(commit)}\n":
                return Revision(commit, self.head.get(stage.name) == stage)
        return Revision(None, False)


def _lock_at(commit: str) -> str:
    return git("show", f"{commit}:./{LOCK_FILE}") or ""
