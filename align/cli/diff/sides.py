"""The two sides of `align diff`: a model or a file, here or at a revision, and the files that hold its rows.

What is not in the workspace is read in place from DVC's cache, or downloaded from the remote.
"""

import os
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from align.cli.project.dvc import LOCK_FILE, DvcFiles
from align.compare.data_sets import ARTIFACTS
from align.core.errors import InputError, quoted
from align.core.files import read_bytes


@dataclass(frozen=True)
class Side:
    """`NAME` or `NAME@REV`: a model or a file, in the workspace or at a git revision or an experiment."""

    text: str
    name: str
    rev: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse it; a file that exists here may have an @ in its name."""
        name, at, rev = text.rpartition("@")
        if not at or not name or os.path.isfile(text):
            return cls(text, text)
        if not rev:
            raise InputError(f"{quoted(text)}: no revision after the @; write NAME@REV, or NAME for the workspace")
        return cls(text, name, rev)

    @property
    def is_file(self) -> bool:
        """Whether it names a file rather than a model."""
        return os.sep in self.name or self.name.endswith(".jsonl") or os.path.isfile(self.name)


@dataclass
class Sources:
    """The workspace, and the revisions that were asked for."""

    downloads: Path  # a folder, for files that the cache lacks
    dvc: DvcFiles = field(default_factory=DvcFiles)
    _revisions: dict[str | None, Any] = field(default_factory=dict)

    @cached_property
    def lock(self) -> str:
        """The text of dvc.lock here: opening DVC takes longer than most comparisons."""
        return read_bytes(LOCK_FILE).decode(errors="replace") if LOCK_FILE.exists() else ""

    def has(self, side: Side, path: str) -> bool:
        """Return whether a side has a file: here, or recorded by DVC or git."""
        if side.rev is None:
            return os.path.isfile(path) or f"path: {path}\n" in self.lock
        return bool(self._files(side.rev).isfile(self._inside(side.rev, path)))

    def file(self, side: Side, path: str) -> Path:
        """Return a local file with a side's content of a path, downloaded if it is not in the cache."""
        if side.rev is None and (os.path.exists(path) or f"path: {path}\n" not in self.lock):
            return Path(path)  # its reader reports what is wrong with it
        files, inside = self._files(side.rev), self._inside(side.rev, path)
        what = path if side.rev is None else f"{path} at {side.rev}"
        if not files.isfile(inside):
            raise InputError(f"{what}: no such file; `dvc ls . -R --rev REV` lists the files of a revision")
        if digest := files.info(inside).get("dvc_info", {}).get("md5"):
            cached = Path(self.dvc.cache, digest[:2], digest[2:])
            if cached.is_file():
                return cached
            what += f" (md5 {digest})"
        target = self.downloads / f"{len(os.listdir(self.downloads))}-{Path(path).name}"
        try:
            files.get_file(inside, os.fspath(target))
        except Exception as error:  # each kind of remote raises its own errors
            remote = self.dvc.repo.config["core"].get("remote")
            push = "`dvc push`" if side.rev is None else "`dvc exp push` or `dvc push`"
            hint = f"nor on the remote {remote}: {push} it where it was made"
            raise InputError(
                f"{what}: neither here nor in DVC's cache, "
                f"{hint if remote else 'and no remote is set up (docs/SHARING.md)'}, or run `dvc repro` "
                f"({' '.join(str(error).split())[:200]})"
            ) from None
        return target

    def _inside(self, rev: str | None, path: str) -> str:
        """Return a path as the file system of a revision has it: it begins at the root of git, which may be above."""
        if rev is None:
            return path
        repo = self.dvc.repo
        return os.path.normpath(os.path.join(os.path.relpath(repo.root_dir, repo.scm.root_dir), path))

    def _files(self, rev: str | None) -> Any:
        if rev in self._revisions:
            return self._revisions[rev]
        repo = self.dvc.repo
        filesystem = import_module("dvc.fs.dvc").DVCFileSystem
        if rev is None:
            return self._revisions.setdefault(rev, filesystem(repo=repo))
        errors = import_module("scmrepo.exceptions").SCMError, import_module("dvc.exceptions").DvcException
        try:
            import_module("dvc.scm").resolve_rev(repo.scm, rev)
        except errors:
            raise InputError(
                f"no revision {quoted(rev)}: neither a git branch, tag or commit, nor a DVC experiment; "
                "see `git log` and `dvc exp list --all-commits`, or fetch it: `git fetch`, `dvc exp pull origin NAME`"
            ) from None
        # A revision has its own .dvc/config, without remotes that were added later.
        config = {key: value for key, value in repo.config.items() if key in ("core", "remote", "cache")}
        found = filesystem(url=repo.scm.root_dir, rev=rev, config=config, subrepos=True)
        return self._revisions.setdefault(rev, found)


def data_sets(sources: Sources, a: Side, b: Side, what: str | None) -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """Return what to compare: name -> (path of A, path of B, key columns)."""
    if a.is_file or b.is_file:
        return {Path(b.name).name: (a.name, b.name, _key(Path(b.name)))}
    result: dict[str, tuple[str, str, tuple[str, ...]]] = {}
    for name, (pattern, key) in ARTIFACTS.items():
        paths = pattern.format(a.name), pattern.format(b.name)
        if name == what or (what is None and sources.has(a, paths[0]) and sources.has(b, paths[1])):
            result[name] = (*paths, key)
    if not result:
        raise InputError(
            f"nothing to compare: {quoted(a.text)} and {quoted(b.text)} are not files, nor models with a data set in "
            "common; name two models or two files, either with @REVISION"
        )
    return result


def _key(path: Path) -> tuple[str, ...]:
    """Return the key columns of the data set that a file is named after; `id` for any other file."""
    for pattern, key in ARTIFACTS.values():
        if path.name == Path(pattern).name or (path.parent.name == "eval" and "eval/" in pattern):
            return key
    return ("id",)
