"""Files as DVC sees them: their hashes by DVC's own code, and where its cache has them."""

import os
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.core.errors import InputError

if TYPE_CHECKING:  # its parser is no part of most comparisons, and takes longer to import than they take
    from align.cli.project.lock_file import Item

AS_LOCKED = "as in dvc.lock"
CHANGED = "changed since"
NOT_HERE = "not here"


class DvcFiles:
    """The workspace and the cache of the DVC repository in the working directory."""

    @cached_property
    def repo(self) -> Any:
        """DVC's repository object.

        Raises:
            InputError: DVC does not open it.
        """
        # DVC takes longer to import than the commands that do without it take altogether.
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

    def hash(self, path: str, algorithm: str = "md5") -> str | None:
        """Return the hash that DVC gives a file or a folder, or None if it is not here."""
        if not os.path.exists(path):
            return None
        build = import_module("dvc_data.hashfile.build").build
        repo = self.repo
        where = os.path.abspath(path)
        _, _, found = build(repo.cache.local, where, repo.fs, algorithm, ignore=repo.dvcignore, dry_run=True)
        return str(found.hash_info.value)

    def state(self, item: "Item") -> str:
        """Tell whether what lies at an item's path is what the lock file says."""
        found = self.hash(item.path, item.algorithm)
        if found is None:
            here = "`dvc checkout`" if self.in_cache(item) else "`dvc pull`, or `dvc repro`"
            return f"{NOT_HERE} ({here})"
        return AS_LOCKED if found == item.hash else CHANGED

    def in_cache(self, item: "Item") -> bool:
        """Tell whether the cache has the object; of a folder, its list of files."""
        return (self.cache / item.hash[:2] / item.hash[2:]).is_file()
