"""Check of `align doctor`: what a killed `dvc exp run` leaves behind, and the way back that loses no uncommitted edit.

`dvc exp run` puts the uncommitted edits into git's stash, detaches HEAD, applies the edits and the `-S` overrides,
makes a stash of both at refs/exps/stash, goes back to the branch and takes the edits out of git's stash. Then it moves
its own stash to EXEC_MERGE and runs the stages on a detached HEAD. When it is killed decides what is left:

- early: HEAD detached, the edits in refs/stash, the tree clean or with edits and overrides;
- for a moment, back on the branch: the edits in refs/stash or in the tree;
- for another: all edits or those of some files in EXEC_MERGE alone;
- in the stages, where all the time goes: HEAD detached, edits and overrides in the tree.

A stash that is left at refs/exps/stash would be run too, by the next `dvc exp run`.
"""

import json
import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from align.cli.doctor.findings import Finding
from align.cli.doctor.repository import running_dvc
from align.cli.project.git import git
from align.cli.project.lock_file import flat
from align.core.params import PARAMS_FILE

EXEC = "refs/exps/exec"
MERGE = f"{EXEC}/EXEC_MERGE"
OWN_STASH = "refs/exps/stash"
MARKS = (f"{EXEC}/EXEC_BASELINE", MERGE, OWN_STASH)  # EXEC_HEAD stays after a run that ended well
STASH_SECONDS = 60  # from the stash of the edits to the detached HEAD, or to EXEC_MERGE; a second or two
KEPT_SECONDS = 13 * 86400  # git keeps what nothing points to for two weeks at least


def check_experiment() -> Iterator[Finding]:
    """Tell whether a `dvc exp run` was killed here, and how to get back."""
    head = git("rev-parse", "-q", "--verify", "HEAD")
    if head is None:
        return
    if any(" exp " in f"{command} " for command in running_dvc().values()):
        yield Finding("experiment", "ok", "`dvc exp run` is running: HEAD is detached until it ends")
        return
    detached = git("symbolic-ref", "-q", "HEAD") is None
    marks = [mark for mark in MARKS if git("rev-parse", "-q", "--verify", mark)]
    dirty = bool(git("status", "--porcelain", "-uno"))
    stashed = _stashed(head)
    # DVC detaches at a full hash, which people seldom type; a build server does, with a clean tree and no stash.
    by_dvc = re.search(r"checkout: moving from \S+ to [0-9a-f]{40}$", git("reflog", "-1", "--format=%gs") or "")
    if marks or (detached and by_dvc and (dirty or stashed)):
        steps = tuple(_way_back(head, detached, marks, dirty, stashed))
        yield Finding("experiment", "problem", "a `dvc exp run` was killed here; to get back with all edits", steps)
    elif detached:
        what = f"HEAD is detached at {head[:7]}: a commit made here is on no branch"
        yield Finding("experiment", "differs", what, (f"`git checkout {_branch(head)}`",))
    else:
        yield Finding("experiment", "ok", "none was killed here")


def _stashed(head: str) -> bool:
    """Tell whether the last stash was made by DVC: of HEAD's commit, and just before HEAD was detached."""
    if git("rev-parse", "-q", "--verify", "refs/stash^1") != head:
        return False
    made = int(git("log", "-1", "--format=%ct", "refs/stash") or 0)
    moves = re.findall(r"\{(\d+)\}", git("reflog", "-2", "--date=unix", "--format=%gd") or "")  # detached, and back
    return any(0 <= int(move) - made <= STASH_SECONDS for move in moves)


def _way_back(head: str, detached: bool, marks: list[str], dirty: bool, stashed: bool) -> Iterator[str]:
    if not detached and MERGE not in marks:
        if stashed and not dirty:
            yield "`git stash pop --index` (your edits, as they were before the run)"
        elif stashed:
            yield from _restore("stash@{0}", _lost(head, "refs/stash"))
            yield "`git stash drop` once you have seen that nothing is missing: DVC had put your edits there"
    elif stashed and MERGE not in marks:
        if dirty:
            yield "`git stash push -m 'edits and overrides of the killed run'`"
        yield f"`git checkout {_branch(head)}`"
        yield f"`git stash pop --index stash@{{{int(dirty)}}}` (your edits, as they were before the run)"
        if dirty:
            yield "`git stash drop` once you have seen that nothing is missing"
    else:
        if detached:
            yield f"`git checkout {_branch(head)}` (without -f: it keeps the uncommitted edits)"
        source = _edits_before(head) if MERGE in marks else None
        lost = _lost(head, source or MERGE) if MERGE in marks else []
        yield from _restore(source or MERGE, lost)
        params_lost = str(PARAMS_FILE) in lost
        if source is not None and not params_lost and not _same((source,), str(PARAMS_FILE)):
            restore = f"git restore --staged {PARAMS_FILE} && git restore --source={source} {PARAMS_FILE}"
            yield f"`{restore}` (as it was before -S, with your edits)"
        overrides = _changes(head, git("show", f"{MERGE}:./{PARAMS_FILE}") if params_lost else None)
        if source is None and overrides:
            yield f"set back in {PARAMS_FILE} what came from -S, of what has changed there: {overrides}"
    for mark in marks:
        yield f"`git update-ref -d {mark}`"
    yield "`dvc checkout`"


def _restore(source: str, names: list[str]) -> Iterator[str]:
    if names:
        yield f"`git restore --source={source} -- {' '.join(map(shlex.quote, names))}` (your edits are there alone)"


def _lost(head: str, source: str) -> list[str]:
    """Return the files whose edits in `source` a checkout has taken from the tree: absent, or as in HEAD again."""

    def differing(*arguments: str) -> set[str]:
        names = git("diff", "--name-only", "--no-renames", "-z", *arguments, "--", ".", ":!.dvc/tmp") or ""
        return set(names.split("\0")) - {""}

    added, deleted = (differing(f"--diff-filter={kind}", head, source) for kind in "AD")
    here = differing(head)
    return sorted(
        name
        for name in differing(head, source)
        if (name not in deleted and not Path(name).exists()) or (name not in added and name not in here)
    )


def _same(commits: tuple[str, ...], *paths: str) -> bool:
    """Tell whether `paths` are the same in two commits, or in one and the working tree."""
    return git("diff", "--quiet", *commits, "--", *paths) is not None


def _edits_before(head: str) -> str | None:
    """Return the commit with the user's edits as they were before the overrides; HEAD if there were no edits.

    DVC has dropped that stash, but git keeps its commit for two weeks.
    """
    made = int(git("log", "-1", "--format=%ct", MERGE) or 0)
    found = []
    for line in (git("fsck", "--no-reflogs", "--unreachable", "--no-progress") or "").splitlines():
        kind, commit = line.split()[1:3]
        if kind != "commit":
            continue
        when, parents, subject = (git("log", "-1", "--format=%ct|%P|%s", commit) or "0||").split("|", 2)
        if subject.startswith("WIP on ") and parents.split()[:1] == [head] and 0 <= made - int(when) <= STASH_SECONDS:
            found.append((int(when), commit))
    if found:
        return max(found)[1][:12]
    # A younger one cannot be gone: there were no edits, all that has changed is by -S.
    young = time.time() - made < KEPT_SECONDS and _same((head, MERGE), ".", ":!.dvc/tmp", f":!{PARAMS_FILE}")
    return "HEAD" if young else None


def _branch(head: str) -> str:
    before = git("rev-parse", "--abbrev-ref", "@{-1}") or ""
    same = before and git("rev-parse", "-q", "--verify", f"refs/heads/{before}") == head
    if same:
        return before
    branches = (git("branch", "--points-at", head, "--format=%(refname:short)") or "").split("\n")
    return next((branch for branch in branches if branch and not branch.startswith("(")), "<your branch>")


def _changes(head: str, text: str | None) -> str:
    then = _params(git("show", f"{head}:./{PARAMS_FILE}") or "")
    try:
        now = _params(PARAMS_FILE.read_text(encoding="utf-8") if text is None else text)
    except (OSError, UnicodeDecodeError):
        return ""
    keys = [key for key in dict.fromkeys((*then, *now)) if then.get(key) != now.get(key)]
    return ", ".join(f"{key} {_show(then.get(key))} -> {_show(now.get(key))}" for key in keys)


def _params(text: str) -> dict[str, Any]:
    try:
        value = YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        return {}
    return flat(value) if isinstance(value, dict) else {}


def _show(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
