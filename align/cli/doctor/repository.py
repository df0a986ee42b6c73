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
CONFLICT_MARKS = ("<<<<<<< ", ">>>>>>> ")
# Options of DVC's remotes that hold a secret itself, not the name of a file or the wish to be asked (ask_password).
SECRET = re.compile(r"(?!ask_)\w*(password|passphrase|secret|token|_key|connection_string)")


def check_repository() -> Iterator[Finding]:
    """Check that git and DVC have a project here, and what a merge, a checkout or a password left in its files."""
    if git("--version") is None:
        yield Finding("repository", "problem", "git is not installed, and DVC needs it", ("install git",))
        return
    root, prefix = git("rev-parse", "--show-toplevel"), git("rev-parse", "--show-prefix")
    missing = [name for name in (".dvc", "dvc.yaml") if not Path(name).exists()]
    if root is None:
        yield Finding("repository", "problem", "not a git repository, or another user owns it", ("see `git status`",))
    elif prefix and missing:  # a project may also lie in a folder of a larger repository
        yield Finding("repository", "problem", "not the repository's root", (f"`cd {root}`",))
    elif missing:
        yield Finding("repository", "problem", f"no {' and no '.join(missing)} here", ("`git checkout -- .`",))
    else:
        yield Finding("repository", "ok", str(Path(root, prefix or "")))
        yield from check_conflicts()
        yield from check_line_ends()
        yield from check_credentials()


def check_conflicts() -> Iterator[Finding]:
    """Find the marks that a merge leaves in files which DVC and the stages read."""
    for path in (Path("params.yaml"), Path("dvc.lock"), Path("dvc.yaml")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        marked = [number for number, line in enumerate(lines, 1) if line.startswith(CONFLICT_MARKS)]
        if not marked:
            continue
        what = f"{path}:{marked[0]}: a merge left its marks (<<<<<<< this side, ======= the other, >>>>>>>)"
        unmerged = bool(git("ls-files", "--unmerged", "--", str(path)))
        if path.name != "dvc.lock":
            steps = [f"edit {path}: keep one side of each, and delete the marks", f"`git add {path}`"]
        elif unmerged:  # DVC rewrites it, so either side will do
            steps = [f"`git checkout --ours {path} && git add {path}`", "`dvc repro`"]
        else:
            merge = f"git log --first-parent -m -1 --format=%h -S'<<<<<<<' -- {path}"
            steps = [f"`git checkout $({merge})^ -- {path}`", "`dvc repro`"]
        yield Finding("merge", "problem", what, tuple(steps))


def check_line_ends() -> Iterator[Finding]:
    """Find files of git with line ends of Windows here: DVC hashes bytes, so every stage that reads one would rerun."""
    listed = (line.split("\t", 1) for line in (git("ls-files", "--eol") or "").splitlines() if "\t" in line)
    odd = [path for ends, path in listed if "w/crlf" in ends or "w/mixed" in ends]
    if odd:
        more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
        steps = (
            "`git config core.autocrlf input`",
            "`git rm -q --cached -r . && git reset -q --hard` (it drops edits)",
        )
        yield Finding("line ends", "problem", f"CRLF in {', '.join(odd[:3])}{more}", steps)


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
