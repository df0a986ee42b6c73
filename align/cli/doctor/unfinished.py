"""Unfinished work of killed stages (see resume.py): what there is, whether it would be used, and deleting it."""

import fcntl
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

from align.cli.project.cards import read_object
from align.cli.project.lock_file import flat
from align.cli.project.machine import environment_here
from align.cli.project.source_code import code_hashes
from align.cli.project.units import show_age, show_size
from align.core.errors import InputError
from align.core.files import sha256
from align.core.params import PARAMS_FILE, Params
from align.run.release import DONE_FILE, resume_root

DECISIONS = ("max_batch_tokens",)  # requests whose rows are no text


@dataclass(frozen=True)
class Work:
    """The work of one stage with one identity."""

    stage: str
    folder: Path
    size: int  # bytes
    age: float  # seconds since something was written
    rows: int
    running: tuple[str, ...]  # PIDs of the processes that hold it
    done: bool  # the stage has ended, and the work stays until DVC has recorded its outputs

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return asdict(self) | {"folder": self.folder.as_posix()}


def all_work() -> list[Work]:
    """Return all unfinished work, by stage, the newest first."""
    folders = [folder for folder in resume_root().glob("*/*") if folder.is_dir()]
    return sorted(map(_look_at, folders), key=lambda work: (work.stage, work.age))


def why_unused(folder: Path) -> list[str]:
    """Return what differs from the identity of the work in `folder`; if anything does, a run now starts anew.

    Raises:
        InputError: params.yaml or the libraries cannot be read.
    """
    try:
        identity = read_object(folder / "identity.json")
        stage, recorded = str(identity["stage"]), {key: dict(identity[key]) for key in ("params", "inputs")}
        environment = dict(identity["environment"])
    except (InputError, KeyError, TypeError, ValueError):
        return ["no identity: killed before it had one"]
    params = json.loads(json.dumps(Params.read().values))
    params_now = {section: params.get(section) for section in recorded["params"]}
    reasons = _differences("params", flat(recorded["params"]), flat(params_now))
    for path, value in recorded["inputs"].items():
        now = sha256(Path(path)) if Path(path).exists() else None
        if now != value:
            reasons.append(f"inputs changed: {path}{'' if now else ' is not here'}")
    if identity.get("code") not in code_hashes(stage):
        reasons.append("code changed")
    return [*reasons, *_differences("environment", environment, _environment())]


def unfinished_lines(work: Work, reasons: Sequence[str]) -> list[str]:
    """Return work as text, with the reasons why it would not be used."""
    state = "done, until DVC has recorded it" if work.done else "stopped"
    state = f"running (PID {', '.join(work.running)})" if work.running else state
    size, age = show_size(work.size), show_age(work.age)
    head = f"{work.stage}  {work.folder.name}  {state}  {work.rows} rows  {size}  {age} old"
    return [head, *(f"  {reason}: will not be used" for reason in reasons)]


def delete(work: Work) -> bool:
    """Delete work that no process holds; tell whether it did.

    A process that starts meanwhile waits for the locks, finds its file gone and begins a new folder.
    """
    with ExitStack() as stack:
        held: set[Path] = set()
        while new := set(work.folder.glob("lock-*")) - held:
            for path in new:
                stream = _try_lock(path, fcntl.LOCK_EX)
                if stream is None:
                    return False
                stack.enter_context(stream)
            held |= new
        shutil.rmtree(work.folder, ignore_errors=True)
    return not work.folder.exists()


def _look_at(folder: Path) -> Work:
    stats = []
    for path in [folder, *folder.rglob("*")]:
        try:
            stats.append(path.stat())
        except FileNotFoundError:
            continue  # it is being written
    return Work(
        folder.parent.name,
        folder,
        sum(stat.st_size for stat in stats),
        time.time() - max(stat.st_mtime for stat in stats),
        len({row for path in folder.glob("rows-*.jsonl") for row in _finished(path)}),
        tuple(pid for path in sorted(folder.glob("lock-*")) for pid in _holder(path)),
        (folder / DONE_FILE).is_file(),
    )


def _finished(path: Path) -> Iterator[tuple[str, int]]:
    """Yield request and number of each finished row; a line that a kill cut off is none."""
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            request, rows = json.loads(line)
            numbers = [int(number) for number, _ in rows]
        except (ValueError, TypeError):
            return
        if line.endswith(b"\n") and request not in DECISIONS:
            yield from ((str(request), number) for number in numbers)


def _holder(path: Path) -> list[str]:
    """Return the PID in a lock file if a process holds it: a PID alone may by now be of another process."""
    stream = _try_lock(path, fcntl.LOCK_SH)
    if stream is not None:
        stream.close()
        return []
    try:
        return [path.read_text(encoding="utf-8") or "unknown"]
    except OSError:
        return []  # it has just finished


def _try_lock(path: Path, kind: int) -> IO[str] | None:
    stream = path.open("r+", encoding="utf-8")
    try:
        fcntl.flock(stream, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        return None
    return stream


@cache
def _environment() -> dict[str, Any]:
    return environment_here()


def _differences(what: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    changes = [
        f"{key} {_show(then, key)} -> {_show(now, key)}"
        for key in dict.fromkeys((*then, *now))
        if key not in then or key not in now or then[key] != now[key]
    ]
    return [f"{what} changed: {', '.join(changes)}"] if changes else []


def _show(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False) if key in values else f"(not in {PARAMS_FILE})"
