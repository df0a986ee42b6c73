"""Checks of `align doctor`: the git and DVC repository, its processes, and passwords that git would publish."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from align.cli.doctor.findings import Finding
from align.cli.project.git import git

CONFIG = Path(".dvc/config")
LOCAL_CONFIG = Path(".dvc/config.local")
# Options of DVC's remotes that hold a secret itself, not the name of a file or the wish to be asked (ask_password).
SECRET = re.compile(r"(?!ask_)\w*(password|passphrase|secret|token|_key|connection_string)")


def check_repository() -> Iterator[Finding]:
    """Check that this is the root of a git repository with DVC in it, and that git has no password of a remote."""
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
        yield from check_credentials()


def check_credentials() -> Iterator[Finding]:
    """Check that no file in git holds a password or key of a remote; its value is not shown."""
    change = "change the password at the server: git keeps what was committed"
    if git("ls-files", "--error-unmatch", str(LOCAL_CONFIG)) is not None:
        steps = (f"`git rm --cached {LOCAL_CONFIG}`", change)
        yield Finding("credentials", "problem", f"{LOCAL_CONFIG} is in git", steps)
    for remote, option in _secrets():
        unset = f"`dvc remote modify --unset {remote} {option}`, and set it again with --local"
        unset = f"`dvc remote modify {remote} url URL` without the password" if option == "url" else unset
        what = f"{CONFIG} is in git and holds {option} of remote {remote}"
        yield Finding("credentials", "problem", what, (unset, f"if it was ever committed, {change}"))


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


def _secrets() -> list[tuple[str, str]]:
    """Return remote and option of each secret in DVC's config; a password in an address is option `url`."""
    remote, secrets = "", []
    for line in CONFIG.read_text(encoding="utf-8", errors="replace").splitlines() if CONFIG.is_file() else ():
        section = re.match(r"\['?remote \"(.*)\"'?\]", line.strip())
        remote = section[1] if section else remote
        option, _, value = map(str.strip, line.partition("="))
        if SECRET.fullmatch(option) or (option == "url" and urlsplit(value).password):
            secrets.append((remote, option))
    return secrets
