"""A killed `dvc exp run`, as `align doctor` finds it: the printed steps lose no edit."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.cli.test_doctor import commands, examine, only, running, slow, slow_project, stage_runs, wait_for
from tests.dvc_project import Project, finished_project, project

__all__ = ["finished_project", "project", "slow", "slow_project"]


def kill_experiment(project: Project, ready: Callable[[], bool]) -> str:
    """Make edits (unstaged, staged, a new file in the index, an untracked one) and kill `dvc exp run` when `ready`.

    Return what params.yaml was.
    """
    project.write("notes.txt", "my notes\n")
    project.replace("params.yaml", "beta: 0.1", "beta: 0.3  # my comment")
    project.write("staged.txt", "staged\n")
    project.run("git add staged.txt")
    project.write("untracked.txt", "untracked\n")
    params = project.read("params.yaml")
    with running(project, "dvc exp run -S dpo.max_length=77"):
        wait_for(ready)
    return params


def yaml(text: str) -> Any:
    return YAML(typ="safe").load(text)


def check_way_back(project: Project, params: str) -> None:
    """Do what the report says, from top to bottom; then all edits are there, and the same command runs."""
    problems = [finding for finding in examine() if finding["status"] == "problem"]
    assert {finding["check"] for finding in problems} <= {"locks", "experiment", "repository"}  # without params.yaml
    for step in (step for finding in problems for step in finding["steps"]):
        if "set back what came from -S" in step:
            project.replace("params.yaml", "max_length: 77", "max_length: 256")
        elif "had not edited" not in step:
            project.run(re.findall("`([^`]+)`", step)[0])

    assert project.run("git symbolic-ref --short HEAD").stdout == "main\n"
    assert project.run("git stash list").stdout == ""
    assert yaml(project.read("params.yaml")) == yaml(params)
    assert "# my comment" in project.read("params.yaml")
    assert project.read("notes.txt") == "my notes\n"
    assert project.read("staged.txt") == "staged\n"
    assert project.read("untracked.txt") == "untracked\n"
    assert only("experiment")["status"] == only("locks")["status"] == "ok"
    project.write("wait.yaml", "wait: 0\n")
    project.run("dvc exp run -q -n again -S dpo.max_length=77")
    assert project.run("dvc exp list --name-only").stdout == "again\n"


def test_an_experiment_killed_in_a_stage_is_recovered_with_all_edits(slow: Project) -> None:
    params = kill_experiment(slow, stage_runs(slow))
    assert slow.run("git symbolic-ref -q HEAD", check=False).returncode == 1
    assert "max_length: 77" in slow.read("params.yaml")

    assert commands(only("experiment"))[-1] == "dvc checkout"
    check_way_back(slow, params)


def test_an_experiment_killed_while_it_stashed_is_recovered_with_all_edits(slow: Project) -> None:
    overridden = "max_length: 77"
    # It may have taken a lock by then, or be past the stash.
    check_way_back(slow, kill_experiment(slow, lambda: overridden in slow.read("params.yaml")))


@pytest.mark.parametrize(
    "undo", ["git reset -q --hard", "git checkout -q HEAD -- params.yaml gone.txt", "rm notes.txt"]
)
def test_an_experiment_killed_between_its_two_stashes_is_recovered_with_all_edits(slow: Project, undo: str) -> None:
    (slow.path / "gone.txt").unlink()
    params = kill_experiment(slow, stage_runs(slow))
    # A moment earlier it is in this state: only EXEC_MERGE has the edits, of all files or of some.
    slow.run(f"git checkout -q main && git reset -q && rm staged.txt && {undo}")

    check_way_back(slow, params)
    assert not (slow.path / "gone.txt").exists()


@pytest.mark.parametrize("popped", ["", ".", "notes.txt"])
def test_an_experiment_killed_on_its_way_back_to_the_branch_is_not_run_by_the_next(slow: Project, popped: str) -> None:
    params = kill_experiment(slow, stage_runs(slow))
    # A moment earlier: its own stash is not at EXEC_MERGE yet, git's has the edits, and so has the tree, in part.
    own = slow.run("git rev-parse refs/exps/exec/EXEC_MERGE").stdout
    commits = slow.run("git fsck --no-reflogs --unreachable | grep commit | cut -d' ' -f3").stdout.split()
    (edits,) = [edit for edit in commits if slow.run(f"git log -1 --format=%s {edit}").stdout.startswith("WIP on main")]
    slow.run("git reset -q --hard && rm -f staged.txt && git symbolic-ref -m 'dvc: Restore HEAD' HEAD refs/heads/main")
    slow.run(f"git update-ref --create-reflog refs/exps/stash {own}")
    slow.run("git update-ref -d refs/exps/exec/EXEC_MERGE && git update-ref -d refs/exps/exec/EXEC_BASELINE")
    slow.run(f"git stash store {edits}")
    if popped:
        slow.run(f"git restore --source={edits} -- {popped}")

    check_way_back(slow, params)


def test_edits_made_after_the_kill_are_kept(slow: Project) -> None:
    kill_experiment(slow, stage_runs(slow))
    slow.write("notes.txt", "my notes\nwritten after the kill\n")
    slow.replace("params.yaml", "seed: 17", "seed: 18")
    for command in commands(only("experiment")):
        if command != "git restore -SW params.yaml":
            slow.run(command)
    assert slow.read("notes.txt") == "my notes\nwritten after the kill\n"
    assert "seed: 18" in slow.read("params.yaml")


def test_an_experiment_killed_without_edits_leaves_the_committed_params(slow: Project) -> None:
    with running(slow, "dvc exp run -S dpo.max_length=77"):
        wait_for(stage_runs(slow))
    assert "max_length: 77" in slow.read("params.yaml")
    for command in commands(only("experiment")):
        slow.run(command)

    assert slow.run("git status --porcelain").stdout == ""
    assert only("experiment")["status"] == "ok"


def test_a_running_experiment_is_not_taken_for_a_killed_one(slow: Project) -> None:
    with running(slow, "dvc exp run"):
        wait_for(stage_runs(slow))
        assert only("experiment")["status"] == "ok"


def test_an_experiment_that_ended_well_leaves_nothing_to_fix(project: Project) -> None:
    project.run("dvc exp run -q -S dpo.beta=0.2")
    assert only("experiment")["status"] == "ok"


def test_a_head_that_was_detached_on_purpose_is_no_problem(project: Project) -> None:
    project.run("git checkout -q $(git rev-parse HEAD)")
    finding = only("experiment")
    assert finding["status"] == "differs"
    assert commands(finding) == ["git checkout -"]
