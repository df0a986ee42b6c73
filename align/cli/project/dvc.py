"""Files as DVC sees them: dvc.lock, hashes by DVC's own code, and the cache."""

import os
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from align.core.errors import InputError

LOCK_FILE = Path("dvc.lock")
AS_LOCKED = "as in dvc.lock"
CHANGED = "changed since"
NOT_HERE = "not here"


class DvcFiles:
    """The workspace and the cache of the DVC repository in the working directory."""

    @cached_property
    def repo(self) -> Any:
        """DVC's repository object. It is opened on demand, since importing DVC takes longer than many commands."""
        dvc_repo, exceptions = import_module("dvc.repo"), import_module("dvc.exceptions")
        try:
            return dvc_repo.Repo(os.curdir)
        except exceptions.DvcException as error:
            reason = " ".join(str(error).split())
            raise InputError(f"DVC cannot open this folder: {reason}; run from the repository's root") from None

    @property
    def cache(self) -> Path:
        """The folder of the cached objects, `files/md5` of the cache."""
        return Path(self.repo.cache.local.path)

    def hash(self, path: str) -> str | None:
        """Return the hash that DVC gives a file or a folder, or None if it is not here."""
        if not os.path.exists(path):
            return None
        build = import_module("dvc_data.hashfile.build").build
        repo, where = self.repo, os.path.abspath(path)
        _, _, built = build(repo.cache.local, where, repo.fs, "md5", ignore=repo.dvcignore, dry_run=True)
        return str(built.hash_info.value)

    def state(self, path: str, locked: str) -> str:
        """Return how the workspace compares with the hash of a path in the lock file."""
        value = self.hash(path)
        if value is None:
            cached = (self.cache / locked[:2] / locked[2:]).is_file()
            return f"{NOT_HERE} ({'`dvc checkout`' if cached else '`dvc pull` or `dvc repro`'})"
        return AS_LOCKED if value == locked else CHANGED
