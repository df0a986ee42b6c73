"""Check of `align doctor`: what a killed `dvc exp run` leaves behind, and a way back that loses no uncommitted edit.

`dvc exp run` puts the uncommitted edits into git's stash, detaches HEAD, applies the edits and the `-S` overrides, and
stashes both at refs/exps/stash. It returns to the branch and pops the edits. Then it moves its own stash to EXEC_MERGE
and runs the stages on a detached HEAD. So, after a kill, EXEC_MERGE has the edits and the overrides; if there is none,
git's stash or the tree has the edits.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from align.cli.doctor.findings import Finding
from align.cli.doctor.repository import running
from align.cli.project.git import git
from align.core.params import PARAMS_FILE

STASH = "stash@{0}"
MERGE = "refs/exps/exec/EXEC_MERGE"
MARKS = ("refs/exps/exec/EXEC_BASELINE", MERGE, "refs/exps/stash")  # EXEC_HEAD stays after a run that ended well


def check_experiment() -> Iterator[Finding]:
    """Report a killed `dvc exp run`, and how to get back."""
    head = git("rev-parse", "-q", "--verify", "HEAD")
    if head is None:
        return
    if any(" exp run" in command for command in running().values()):
        yield Finding("experiment", "ok", "`dvc exp run` is running: HEAD is detached until it ends")
        return
    detached = git("symbolic-ref", "-q", "HEAD") is None
    dirty = bool(git("status", "--porcelain", "-uno"))
    stashed = git("rev-parse", "-q", "--verify", f"{STASH}^1") == head  # on this commit: perhaps by DVC
    marks = [mark for mark in MARKS if git("rev-parse", "-q", "--verify", mark)]
    # DVC detaches at a full hash, which people seldom type; a build server does, with a clean tree and no stash.
    by_dvc = re.search(r"checkout: moving from \S+ to [0-9a-f]{40}$", git("reflog", "-1", "--format=%gs") or "")
    if marks or (detached and by_dvc and (dirty or stashed)):
        steps = tuple(_way_back(head, detached, stashed, marks))
        yield Finding("experiment", "problem", "a `dvc exp run` was killed here; to get back with all edits", steps)
    elif detached:
        what = f"HEAD is detached at {head[:7]}: a commit made here is on no branch"
        yield Finding("experiment", "differs", what, ("`git checkout -` returns to the branch",))
    else:
        yield Finding("experiment", "ok", "none was killed here")


def _way_back(head: str, detached: bool, stashed: bool, marks: list[str]) -> Iterator[str]:
    edits = MERGE if MERGE in marks else STASH if stashed else None
    lost = _lost(head, edits) if edits else []
    if detached:
        yield "`git checkout -` (to your branch; without -f it keeps uncommitted edits)"
    if lost:
        yield f"`git restore --source={edits} -- {shlex.join(lost)}` (only there are these edits)"
    if edits == STASH:
        params = f"--source={STASH} {PARAMS_FILE}`, if `git diff {STASH} {PARAMS_FILE}` shows only what came from -S"
        yield f"`git restore {params}"
        yield f"`git stash drop` once `git diff {STASH}` shows that nothing is missing"
    elif detached or edits:
        yield f"see `git diff HEAD {PARAMS_FILE}`, and set back what came from -S"
        yield f"or, if you had not edited it, `git restore -SW {PARAMS_FILE}`: DVC has reformatted the file"
    for mark in marks:
        yield f"`git update-ref -d {mark}`"
    yield "`dvc checkout`"


def _lost(head: str, edits: str) -> list[str]:
    """Return the files whose edits the tree lacks: the file is absent, or as in HEAD."""

    def names(*command: str) -> set[str]:
        return set((git(*command) or "").split("\0")) - {""}

    tracked, changed = names("ls-tree", "-rz", "--name-only", head), names("diff", "-z", "--name-only", head)
    differing = names("diff", "-z", "--name-only", "--no-renames", edits, "--", ".", ":!.dvc/tmp")
    return sorted(name for name in differing if not Path(name).exists() or name in tracked - changed)
