"""Checks of `align doctor`: git, params, what a killed DVC left behind."""

import fcntl
import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from align.cli.doctor.findings import Finding
from align.cli.project.dvc import DvcFiles
from align.cli.project.git import git
from align.cli.remotes.credentials import check_credentials
from align.core.params import Params

LOCK = Path(".dvc/tmp/lock")
LOCK_FILE = Path("dvc.lock")
RWLOCKS = (Path(".dvc/tmp/rwlock"), Path(".dvc/tmp/exps/rwlock"))


def check_repository() -> Iterator[Finding]:
    """Tell whether this is a git repository's root with DVC and no password in it, and if params.yaml can be read."""
    if git("--version") is None:
        yield Finding("repository", "problem", "git is not installed, which DVC runs", ("install git",))
        return
    root = git("rev-parse", "--show-toplevel")
    if root is None:
        yield Finding("repository", "problem", "no git repository, or one of another owner", ("see `git status`",))
    elif Path(root).resolve() != Path.cwd():
        yield Finding("repository", "problem", "not the repository's root", (f"`cd {root}`",))
    elif not Path(".dvc").is_dir() or not Path("dvc.yaml").is_file():
        missing = [name for name in (".dvc", "dvc.yaml") if not Path(name).exists()]
        yield Finding("repository", "problem", f"{', '.join(missing)} not here", ("`git checkout -- .`",))
    else:
        yield Finding("repository", "ok", root)
        yield from check_credentials()
    Params.read()


def check_locks() -> Iterator[Finding]:
    """Tell whether DVC runs, and whether a killed DVC or git left a lock that stops the next."""
    if not LOCK.parent.is_dir():
        return
    found = [*_repository_lock(), *(finding for path in RWLOCKS for finding in _rwlock(path)), *_git_locks()]
    running = running_dvc()
    if running:
        what = f"DVC is running ({'; '.join(f'PID {pid}: {command}' for pid, command in running.items())})"
        found.append(Finding("locks", "differs", what, ("another command waits for it or fails",)))
    yield from found or [Finding("locks", "ok", "none is held")]


def check_lock_file() -> Iterator[Finding]:
    """Tell whether dvc.lock is whole: DVC does not write it as a whole, and with half of it does nothing."""
    if not LOCK_FILE.is_file():
        return
    text = LOCK_FILE.read_text(encoding="utf-8", errors="replace")
    try:
        YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark is not None else ""
        mend = ("`git restore dvc.lock`", "`dvc repro`: what had finished since comes from DVC's run cache")
        yield Finding(
            "lock_file", "problem", f"dvc.lock breaks off{place}, as when DVC is killed while it writes it", mend
        )
        return
    yield Finding("lock_file", "ok", f"dvc.lock, {text.count(chr(10))} lines")


def running_dvc() -> dict[int, str]:
    """Return PID and command of each live DVC process that works on this repository."""
    owners = [(_owners(path) or {}).items() for path in RWLOCKS]
    return {pid: command for items in owners for pid, command in items if _is_dvc(pid)}


def _repository_lock() -> list[Finding]:
    if not LOCK.is_file():
        return []
    if DvcFiles().repo.config["core"].get("hardlink_lock"):
        # The file itself is the lock, with `path|host|PID|number` in it; DVC lets it stand for a year.
        parts = LOCK.read_text(encoding="utf-8", errors="replace").strip().split("|")
        if len(parts) == 4 and (parts[1] != os.uname().nodename or _is_dvc(int(parts[2]))):
            return [Finding("locks", "differs", f"{LOCK} is held by process {parts[2]} on {parts[1]}")]
        return [Finding("locks", "problem", f"{LOCK} was left by a killed DVC", (f"`rm {LOCK}`",))]
    with LOCK.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return [Finding("locks", "differs", f"{LOCK} is held by process {LOCK.read_text().strip()}")]
    return []


def _rwlock(path: Path) -> list[Finding]:
    owners = _owners(path)
    if owners is None:
        what = f"{path} is cut off: DVC was killed while it wrote it, and none starts with it"
        return [Finding("locks", "problem", what, (f"`rm {path}`",))]
    # DVC takes out those of dead processes by itself; a PID that has been given out anew looks alive to it.
    others = [pid for pid in owners if psutil.pid_exists(pid) and not _is_dvc(pid)]
    if not others:
        return []
    what = f"{path} names {', '.join(map(str, others))} as DVC, which is another program by now"
    return [Finding("locks", "problem", what, (f"`rm {path}`",))]


def _git_locks() -> list[Finding]:
    """Look for git's locks, also those that DVC takes of the index, a ref or an object; no PID is in them."""
    folder = git("rev-parse", "--git-common-dir")
    locks = sorted(Path(folder).rglob("*.lock")) if folder else []
    if not locks:
        return []
    names = " ".join(map(shlex.quote, map(str, locks)))
    at_work = [f"PID {pid}" for pid in _at_work()]
    if at_work:
        return [Finding("locks", "differs", f"{names} is held, it seems by {', '.join(at_work)}")]
    what = f"{names} was left by a killed DVC or git, and stops the next that would write there"
    return [Finding("locks", "problem", what, (f"`rm {names}`",))]


def _at_work() -> list[int]:
    """Return the PID of each live git and DVC in this repository, of which DVC names its own late."""
    found = []
    for process in psutil.process_iter(["pid", "name", "cwd"]):
        place = process.info["cwd"]  # None where the process may not be looked into
        here = place is not None and Path(place).is_relative_to(Path.cwd())
        if here and (process.info["name"] == "git" or _is_dvc(process.info["pid"])):
            found.append(process.info["pid"])
    return found


def _owners(path: Path) -> dict[int, str] | None:
    """Return PID and command of those in a lock file, dead or alive, or None if it cannot be read."""
    if not path.is_file():
        return {}
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        entries = [entry for entries in value.get("read", {}).values() for entry in entries]
        return {int(entry["pid"]): str(entry["cmd"]) for entry in [*entries, *value.get("write", {}).values()]}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_dvc(pid: int) -> bool:
    try:
        return any("dvc" in Path(part).name for part in psutil.Process(pid).cmdline()[:4])
    except psutil.Error:
        return False
