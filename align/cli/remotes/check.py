"""Whether what a DVC remote holds is what is needed, and whole: an object's name is the md5 of its content."""

import hashlib
import shlex
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from tqdm import tqdm

from align.cli.project.dvc import DvcFiles
from align.cli.remotes.needs import DIR, Needed, Out, is_named_rightly, members, objects_of, outs_of, select
from align.cli.remotes.objects import RemoteObjects

Fault = Literal["missing", "truncated", "corrupt"]
Value = TypeVar("Value")


@dataclass(frozen=True)
class BadObject:
    """An object that is not on the remote as it should be."""

    oid: str
    url: str
    fault: Fault
    what: str
    paths: tuple[str, ...]  # in the project; empty for an object of old revisions
    stages: tuple[str, ...]
    repairable: bool  # whether the cache here has it, whole


@dataclass
class Report:
    """What a check has found."""

    remote: str
    url: str
    repair: str  # the command that repairs what can be
    checked: int = 0  # objects
    hashed: int = 0  # objects
    downloaded: int = 0  # bytes
    bad: list[BadObject] = field(default_factory=list)
    not_pushed: list[str] = field(default_factory=list)  # paths of outs with `push: false`
    unknown_folders: list[str] = field(default_factory=list)  # nobody has a good list of their files
    leftovers: list[str] = field(default_factory=list)  # URLs of what is no object

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return asdict(self)


@dataclass(frozen=True)
class Scope:
    """What to check."""

    targets: Sequence[str] = ()
    revisions: Sequence[str] = ()
    everything: bool = False  # all that is on the remote, of old revisions too
    quick: bool = False  # hash only what has the wrong size
    jobs: int = 4

    def repair_command(self, remote: str) -> str:
        """Return the command that checks the same again and repairs it."""
        revisions = [part for revision in self.revisions for part in ("--rev", revision)]
        everything = ["--all"] if self.everything else []
        return shlex.join(["align", "remote-check", "-r", remote, *revisions, *everything, "--repair", *self.targets])


class RemoteCheck:
    """The check of one remote against the DVC repository in the working directory."""

    def __init__(self, files: DvcFiles, name: str | None) -> None:
        self.files = files
        self.remote = RemoteObjects(files.repo, name)
        self._listing = cache(self._read_listing)

    def run(self, scope: Scope) -> Report:
        """Look at each object.

        Raises:
            InputError: the remote cannot be reached, or a target or a revision is unknown.
        """
        report = Report(self.remote.name, self.remote.url, scope.repair_command(self.remote.name))
        outs = self._outs(scope, report)
        objects = objects_of(outs, self._listing, self._size_here)
        report.unknown_folders = [out.path for out in outs if out.oid.endswith(DIR) and self._listing(out.oid) is None]
        if scope.everything:
            names, report.leftovers = self.remote.listed()
            objects = {oid: Needed(oid) for oid in names} | objects
        sizes = _each(self.remote.size, objects, scope.jobs, "sizes")
        there = {oid: size for oid, size in sizes.items() if size is not None}
        suspects = self._suspects(outs, objects, there) if scope.quick else set(there)
        hashes = _each(self.remote.md5, suspects, scope.jobs, "hashes")
        report.checked, report.hashed = len(objects), len(hashes)
        report.downloaded = sum(there[oid] for oid in hashes)
        for oid, needed in objects.items():
            if oid not in there:
                report.bad.append(self._bad(needed, "missing", "not there"))
            elif hashes.get(oid, oid.removesuffix(DIR)) != oid.removesuffix(DIR):
                short = needed.size is not None and there[oid] < needed.size
                what = f"{there[oid]} of {needed.size} bytes" if short else f"its content has the md5 {hashes[oid]}"
                report.bad.append(self._bad(needed, "truncated" if short else "corrupt", what))
        return report

    def repair(self, bad: Sequence[BadObject]) -> list[BadObject]:
        """Replace on the remote what the cache here has whole, and return what is still bad then.

        Raises:
            InputError: the remote cannot be reached.
        """
        lost = {path for one in bad if not one.repairable for path in one.paths}
        # DVC takes a folder's list for all its files: it is not put back while one of them stays bad.
        whole = [one for one in bad if one.repairable and not (one.oid.endswith(DIR) and _has_one_of(one, lost))]
        for one in whole:
            if one.fault != "missing":
                self.remote.delete(one.oid)
        self.remote.push([one.oid for one in whole])
        hashes = {one.oid: self.remote.md5(one.oid) for one in whole}
        return [one for one in bad if hashes.get(one.oid) != one.oid.removesuffix(DIR)]

    def _outs(self, scope: Scope, report: Report) -> list[Out]:
        outs = outs_of(self.files.repo, scope.revisions)
        outs = select(outs, scope.targets) if scope.targets else outs
        outs = [out for out in outs if out.remote in (None, self.remote.name)]
        report.not_pushed = sorted({out.path for out in outs if not out.pushed})
        return [out for out in outs if out.pushed]

    def _suspects(self, outs: Iterable[Out], objects: dict[str, Needed], there: dict[str, int]) -> set[str]:
        """Return what has another size than its copy here, and the files of folders that do not add up."""
        found = {oid for oid, size in there.items() if objects[oid].size not in (None, size)}
        for out in outs:
            if out.oid.endswith(DIR):
                files = [oid for _, oid in members(self._listing(out.oid))]
                if sum(there.get(oid, 0) for oid in files) != out.size:
                    found |= there.keys() & {out.oid, *files}
        return found

    def _bad(self, needed: Needed, fault: Fault, what: str) -> BadObject:
        url, paths, stages = self.remote.url_of(needed.oid), tuple(needed.paths), tuple(needed.stages)
        return BadObject(needed.oid, url, fault, what, paths, stages, self._is_whole_here(needed.oid))

    def _here(self, oid: str) -> Path:
        return self.files.cache / oid[:2] / oid[2:]

    def _read_listing(self, oid: str) -> bytes | None:
        content = self._here(oid).read_bytes() if self._here(oid).is_file() else None
        if content is None or not is_named_rightly(oid, content):
            content = self.remote.read(oid)
        return content if content is not None and is_named_rightly(oid, content) else None

    def _size_here(self, oid: str) -> int | None:
        return self._here(oid).stat().st_size if self._here(oid).is_file() else None

    def _is_whole_here(self, oid: str) -> bool:
        # Not by DVC's own check, which deletes what is corrupt and trusts what is read-only.
        if not self._here(oid).is_file():
            return False
        with self._here(oid).open("rb") as stream:
            return hashlib.file_digest(stream, "md5").hexdigest() == oid.removesuffix(DIR)


def _each(function: Callable[[str], Value], oids: Iterable[str], jobs: int, what: str) -> dict[str, Value]:
    names = list(oids)
    with ThreadPoolExecutor(jobs) as pool:
        values = tqdm(pool.map(function, names), what, len(names), unit=" objects", disable=None, leave=False)
        return dict(zip(names, values, strict=True))


def _has_one_of(listing: BadObject, paths: Iterable[str]) -> bool:
    return any(path.startswith(f"{folder}/") for folder in listing.paths for path in paths)
