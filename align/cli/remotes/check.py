"""Whether a DVC remote has every object that is needed, undamaged."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from align.cli.project.dvc import DvcFiles
from align.cli.remotes.objects import DIR, Needed, cached, needed_objects
from align.cli.remotes.remote import Remote

THREADS = 4


@dataclass(kw_only=True)
class BadObject(Needed):
    """An object that the remote lacks, or has damaged."""

    fault: str  # missing or damaged
    what: str
    url: str
    repairable: bool  # the cache here has it undamaged


@dataclass
class Report:
    """The result of a check."""

    remote: str
    url: str
    checked: int  # objects
    hashed: int = 0  # objects
    downloaded: int = 0  # bytes
    not_pushed: list[str] = field(default_factory=list)  # paths of outs with `push: false`
    bad: list[BadObject] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)  # names of objects


def check(files: DvcFiles, remote: Remote, targets: Sequence[str], revisions: Sequence[str], quick: bool) -> Report:
    """Compare each object on the remote with its name; `quick` hashes only those whose size is wrong or unknown."""
    not_pushed = set()

    def is_pushed(path: str, out: Any) -> bool:
        if not out.can_push:
            not_pushed.add(path)
        return bool(out.can_push) and not out.stage.is_repo_import and out.remote in (None, remote.name)

    def look(needed: Needed) -> tuple[int | None, str | None]:
        size = remote.size(needed.oid)
        skip = size is None or (quick and size == needed.size)
        return size, None if skip else remote.md5(needed.oid)

    objects = needed_objects(files.repo, files.cache, targets, revisions, remote.read, is_pushed).values()
    report = Report(remote.name, remote.url, len(objects), not_pushed=sorted(not_pushed))
    with ThreadPoolExecutor(THREADS) as pool:
        sizes_and_hashes = tqdm(pool.map(look, objects), "objects", len(objects), disable=None, leave=False)
        for needed, (size, digest) in zip(objects, sizes_and_hashes, strict=True):
            report.hashed += digest is not None
            report.downloaded += (size or 0) if digest else 0
            oid = needed.oid
            if size is None or digest not in (None, oid.removesuffix(DIR)):
                fault, what = ("damaged", f"{size} bytes, md5 {digest}") if digest else ("missing", "not on the remote")
                whole, url = cached(files.cache, oid) is not None, remote.url_of(oid)
                report.bad.append(BadObject(**vars(needed), fault=fault, what=what, url=url, repairable=whole))
    return report


def repair(remote: Remote, report: Report) -> None:
    """Replace on the remote what the cache here has undamaged, and note what has worked."""
    lost = [path for one in report.bad if not one.repairable for path in one.paths]

    def is_proof(one: BadObject) -> bool:  # DVC takes a folder's list as proof of its files, one of which is lost
        folders = [f"{path}/" for path in one.paths if one.oid.endswith(DIR)]
        return any(path.startswith(folder) for folder in folders for path in lost)

    oids = [one.oid for one in report.bad if one.repairable and not is_proof(one)]
    remote.replace(oids)
    report.repaired = [oid for oid in oids if remote.md5(oid) == oid.removesuffix(DIR)]
