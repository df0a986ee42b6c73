"""Which git commit brought a result into dvc.lock."""

import subprocess
from dataclasses import dataclass

from align.cli.project.lock_file import Item, Lock, Stage
from align.core.errors import InputError


@dataclass(frozen=True)
class Revision:
    """Where git has a stage's run; `commit` is None if it has its out nowhere, or there is no git."""

    commit: str | None  # short hash
    committed: bool  # whether HEAD's lock file has the very entry of the stage


def git(*arguments: str) -> str | None:
    """Return what `git ...` prints, or None if it fails or git is not installed."""
    try:
        result = subprocess.run(["git", *arguments], capture_output=True, check=False)
    except OSError:
        return None
    return result.stdout.decode(errors="replace").rstrip("\n") if result.returncode == 0 else None


class Revisions:
    """The history of one lock file, as git in the working directory has it."""

    def __init__(self, lock: Lock) -> None:
        self.path = lock.path.as_posix()
        self.text = lock.path.read_text(encoding="utf-8")
        try:
            self.head = Lock.parse(git("show", f"HEAD:./{self.path}") or "stages: {}").stages
        except InputError:
            self.head = {}

    def of(self, stage: Stage, out: Item) -> Revision:
        """Return the last commit that brought the present hash of a stage's out into the lock file."""
        # DVC writes the path just before the hash. Files of equal content are told apart by it.
        lines = f"path: {out.path}\n      hash: {out.algorithm}\n      md5: {out.hash}\n"
        needle = lines if lines in self.text else out.hash
        for commit in (git("log", f"-S{needle}", "--format=%h", "--", self.path) or "").split():
            # A commit that adds or removes a stage which reads the out is found too.
            before = git("show", f"{commit}^:./{self.path}") or ""
            if needle not in before and needle in f"{git('show', f'{commit}:./{self.path}')}\n":
                return Revision(commit, self.head.get(stage.name) == stage)
        return Revision(None, False)
