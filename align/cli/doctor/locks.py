"""Check of `align doctor`: the locks that a killed DVC or git leaves."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import psutil

from align.cli.doctor.findings import Finding
from align.cli.doctor.repository import running
from align.cli.project.git import git

RWLOCKS = (Path(".dvc/tmp/rwlock"), Path(".dvc/tmp/exps/rwlock"))


def check_locks() -> Iterator[Finding]:
    """Report whether DVC runs, and whether a killed DVC or git left a lock that stops the next one."""
    dvc = running("dvc")
    findings = [*_git_locks(dvc), *(finding for path in RWLOCKS if path.is_file() for finding in _rwlock(path, dvc))]
    if dvc:
        what = f"DVC is running ({'; '.join(f'PID {pid}: {command}' for pid, command in dvc.items())})"
        findings.append(Finding("locks", "differs", what, ("another DVC command waits for it or fails",)))
    yield from findings or [Finding("locks", "ok", "none is held")]


def _rwlock(path: Path, dvc: dict[int, str]) -> Iterator[Finding]:
    """Check a lock file of DVC, which drops the entries of dead processes by itself."""
    text = path.read_text(encoding="utf-8", errors="replace")
    reused = [pid for pid in re.findall(r'"pid": (\d+)', text) if int(pid) not in dvc and psutil.pid_exists(int(pid))]
    try:
        broken = not isinstance(json.loads(text), dict)
    except ValueError:
        broken = True
    if broken or reused:
        why = "is cut off" if broken else f"names PID {', '.join(reused)}, which is another program now"
        yield Finding("locks", "problem", f"{path} was left by a killed DVC and {why}", (f"`rm {path}`",))


def _git_locks(dvc: dict[int, str]) -> Iterator[Finding]:
    """Check for git's locks, which hold no PID; DVC takes them too."""
    folder = git("rev-parse", "--git-common-dir")
    locks = shlex.join(map(str, sorted(Path(folder).rglob("*.lock")))) if folder else ""
    holders = ", ".join(f"PID {pid}" for pid in dvc | running("git"))
    if locks and holders:
        yield Finding("locks", "differs", f"{locks} is held, probably by {holders}")
    elif locks:
        what = f"{locks} was left by a killed DVC or git and stops the next"
        yield Finding("locks", "problem", what, (f"`rm {locks}`",))
