"""What `align diff` and others are asked for: a model or a file, here or at a revision, and where its rows are.

What is not in the workspace comes from DVC's cache, where it is read in place, or from the remote.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from align.cli.project.dvc import DvcFiles
from align.compare.data_sets import ARTIFACTS
from align.core.errors import InputError, quoted
from align.core.files import read_bytes


@dataclass(frozen=True)
class Side:
    """`NAME` or `NAME@REV`: a model or a file, in the workspace or at a git revision or an experiment."""

    text: str
    name: str
    rev: str | None

    @classmethod
    def parse(cls, text: str) -> "Side":
        """Read it; a file that is here may have an @ in its name."""
        name, at, rev = text.rpartition("@")
        if not at or not name or os.path.isfile(text):
            return cls(text, text, None)
        if not rev:
            raise InputError(f"{quoted(text)}: no revision after the @; write NAME@REV, or NAME for what is here")
        return cls(text, name, rev)


@contextmanager
def opened() -> Iterator["Sources"]:
    """Open the places that rows come from; what was downloaded is deleted at the end."""
    with TemporaryDirectory(prefix="align-") as folder:
        yield Sources(Path(folder))


@dataclass
class Sources:
    """The workspace, and the revisions that were asked for."""

    downloads: Path
    _revisions: dict[str | None, Any] = field(default_factory=dict)

    @cached_property
    def lock(self) -> str:
        """The text of dvc.lock here: to open DVC takes longer than most comparisons."""
        return read_bytes(Path("dvc.lock")).decode(errors="replace") if os.path.exists("dvc.lock") else ""

    @cached_property
    def dvc(self) -> DvcFiles:
        """The repository of the working directory."""
        return DvcFiles()

    def has(self, side: Side, path: str) -> bool:
        """Tell whether a side has a file: here, or recorded by DVC or git."""
        if side.rev is None:
            return os.path.isfile(path) or f"path: {path}\n" in self.lock
        return bool(self._files(side.rev).isfile(path))

    def file(self, side: Side, path: str) -> Path:
        """Return a local file with a side's content of a path.

        Raises:
            InputError: there is none, or it is neither here nor in the cache nor on the remote.
        """
        if side.rev is None and (os.path.exists(path) or f"path: {path}\n" not in self.lock):
            return Path(path)  # whoever opens it tells what is wrong with it
        files = self._files(side.rev)
        where = f" at {side.rev}" if side.rev is not None else ""
        if not files.isfile(path):
            raise InputError(f"{path}{where}: no such file; `dvc ls . -R --rev REV` lists those of a revision")
        info = files.info(path).get("dvc_info", {})
        if digest := info.get("md5"):
            cached = os.path.join(self.dvc.cache, digest[:2], digest[2:])
            if os.path.isfile(cached):
                return Path(cached)
        target = self.downloads / f"{len(os.listdir(self.downloads))}-{Path(path).name}"
        try:
            files.get_file(path, os.fspath(target))
        except Exception as error:
            # Each kind of remote has errors of its own; which object is missing is what matters, and their words.
            raise InputError(_not_found(path, where, digest, error, self.dvc)) from None
        return target

    def _files(self, rev: str | None) -> Any:
        if rev not in self._revisions:
            if rev is not None:
                self._check(rev)
            repo = self.dvc.repo
            # A revision has its own .dvc/config, in which a remote that was added later is missing.
            config = {key: value for key, value in repo.config.items() if key in ("core", "remote", "cache")}
            filesystem = import_module("dvc.fs.dvc").DVCFileSystem
            self._revisions[rev] = (
                filesystem(url=repo.root_dir, rev=rev, config=config) if rev else filesystem(repo=repo)
            )
        return self._revisions[rev]

    def _check(self, rev: str) -> None:
        exceptions, resolve = import_module("scmrepo.exceptions"), import_module("dvc.scm").resolve_rev
        try:
            resolve(self.dvc.repo.scm, rev)
        except (exceptions.SCMError, import_module("dvc.exceptions").DvcException):
            raise InputError(
                f"no revision {quoted(rev)}: git has no such branch, tag or commit, and DVC no such experiment; "
                "see `git log` and `dvc exp list --all-commits`, or fetch it: `git fetch`, `dvc exp pull origin NAME`"
            ) from None


def _not_found(path: str, where: str, digest: str | None, error: Exception, dvc: DvcFiles) -> str:
    remote = dvc.repo.config["core"].get("remote")
    reason = " ".join(str(error).split())[:200]
    if remote is None:
        hint = "no remote is set up to get it from (docs/SHARING.md)"
    else:
        push = "`dvc exp push` or `dvc push`" if where else "`dvc push`"
        hint = f"nor on the remote {remote}: {push} it from where it was made"
    what = f"{path}{where}" + (f" (md5 {digest})" if digest else "")
    return f"{what}: neither here nor in DVC's cache, {hint}, or make it anew with `dvc repro` ({reason})"


def data_sets(sources: Sources, a: Side, b: Side, what: str | None) -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """Return what to compare: name -> (path of A, path of B, key columns).

    Raises:
        InputError: nothing.
    """
    if _is_file(a) or _is_file(b):
        return {Path(b.name).name: (a.name, b.name, _key(b.name))}
    found: dict[str, tuple[str, str, tuple[str, ...]]] = {}
    for name, (pattern, key) in ARTIFACTS.items():
        paths = pattern.format(a.name), pattern.format(b.name)
        if name == what or (what is None and sources.has(a, paths[0]) and sources.has(b, paths[1])):
            found[name] = (*paths, key)
    if not found:
        raise InputError(
            f"nothing to compare: {quoted(a.text)} and {quoted(b.text)} are no files, and no data set of both is "
            "known; name two models, two files, or one of them with @REVISION"
        )
    return found


def _is_file(side: Side) -> bool:
    return os.sep in side.name or side.name.endswith(".jsonl") or os.path.isfile(side.name)


def _key(path: str) -> tuple[str, ...]:
    """Return the key columns of the artifact that a path has the name of; `id` of any other file."""
    for pattern, key in ARTIFACTS.values():
        if Path(path).name == Path(pattern).name or (Path(path).parent.name == "eval" and "eval/" in pattern):
            return key
    return ("id",)
