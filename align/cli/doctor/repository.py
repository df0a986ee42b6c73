"""Checks of `align doctor`: the git and DVC repository, and its processes."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import psutil

from align.cli.doctor.findings import Finding
from align.cli.project.git import git


def check_repository() -> Iterator[Finding]:
    """Check that this is the root of a git repository with DVC in it."""
    if git("--version") is None:
        yield Finding("repository", "problem", "git is not installed, and DVC needs it", ("install git",))
        return
    root = git("rev-parse", "--show-toplevel")
    missing = [name for name in (".dvc", "dvc.yaml") if not Path(name).exists()]
    if root is None:
        yield Finding("repository", "problem", "not a git repository, or another user owns it", ("see `git status`",))
    elif Path(root).resolve() != Path.cwd():
        yield Finding("repository", "problem", "not the repository's root", (f"`cd {root}`",))
    elif missing:
        yield Finding("repository", "problem", f"no {' and no '.join(missing)} here", ("`git checkout -- .`",))
    else:
        yield Finding("repository", "ok", root)


def running(program: str = "dvc") -> dict[int, str]:
    """Return PID and command of each process of a program in this repository."""
    processes = {}
    for process in psutil.process_iter(["cmdline", "cwd"]):
        command, folder = process.info["cmdline"], process.info["cwd"]  # None for processes of other users
        # `dvc`, `python /somewhere/bin/dvc`, `python -m dvc`
        here = command and folder and Path(folder).is_relative_to(Path.cwd())
        if here and program in [Path(part).name for part in command[:3]]:
            processes[process.pid] = shlex.join(command)
    return processes
