"""`align doctor`: each test makes a bad state, and the printed steps fix it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from align.cli.doctor.environment import environment_here
from tests.dvc_project import Project, align, finished_project, project

__all__ = ["finished_project", "project"]


def examine(*arguments: str) -> list[dict[str, Any]]:
    result = align("doctor", "--json", *arguments)
    findings: list[dict[str, Any]] = json.loads(result.output)
    assert result.exit_code == int(any(finding["status"] == "problem" for finding in findings))
    return findings


def of(check: str, *arguments: str) -> list[dict[str, Any]]:
    return [finding for finding in examine(*arguments) if finding["check"] == check]


def only(check: str, *arguments: str) -> dict[str, Any]:
    (finding,) = of(check, *arguments)
    return finding


def commands(finding: dict[str, Any]) -> list[str]:
    return [command for step in finding["steps"] for command in re.findall("`([^`]+)`", step)[:1]]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextmanager
def running(project: Project, command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command in a process group of its own, and kill the group in the end."""
    process = subprocess.Popen(
        ["bash", "-c", f"exec {command}"],
        cwd=project.path,
        env=project.env,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def stage_runs(project: Project) -> Callable[[], bool]:
    return lambda: (project.path / "started").exists()


@pytest.fixture(scope="module")
def slow_project(finished_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = finished_project.copy(tmp_path_factory.mktemp("slow") / "project")
    project.replace("dvc.yaml", "cmd: sleep ${wait} &&", "cmd: touch started && sleep ${wait} &&")
    project.write(".gitignore", "started\n")
    project.write("wait.yaml", "wait: 600\n")
    project.write("gone.txt", "gone\n")
    project.commit("slow")
    return project


@pytest.fixture
def slow(slow_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The project with a stage that says when it has started, and takes its time; the working directory."""
    return slow_project.enter(tmp_path / "project", monkeypatch)


def test_a_clean_repository_has_no_problem_and_one_line_a_check(project: Project) -> None:
    result = align("doctor")

    assert result.exit_code == 0, result.output
    assert all(re.match(r"(ok|differs) +\w+ +\S", line) for line in result.output.splitlines())
    for check in ("repository", "experiment", "locks", "disk", "memory", "unfinished", "device"):
        assert only(check)["status"] == "ok"


def test_another_python_is_a_problem(project: Project) -> None:
    project.write("pyproject.toml", '[project]\nrequires-python = ">=3.11"\n')
    assert only("python")["status"] == "ok"
    project.write("pyproject.toml", '[project]\nrequires-python = ">=3.99"\n')
    assert only("python")["status"] == "problem"


def test_packages_are_compared_with_their_pins(project: Project) -> None:
    public = torch.__version__.partition("+")[0]
    project.write("requirements.txt", f"-r more.txt\n# text\ntorch=={public}\n")
    assert only("packages") | {"steps": []} == {
        "check": "packages",
        "status": "ok",
        "what": "all 1 as pinned in requirements.txt",
        "steps": [],
    }

    project.write("requirements.txt", "click==0.1\nnot-a-package-of-anybody==1\n")
    missing, other = of("packages")
    assert (missing["status"], missing["what"]) == ("problem", "not installed: not-a-package-of-anybody")
    assert other["status"] == "differs"
    assert "(pinned ==0.1)" in other["what"]


def test_the_environment_of_each_result_is_compared_with_this_one(project: Project) -> None:
    here = environment_here()
    project.write("models/m1/model_card.json", json.dumps({"environment": here}))
    assert only("environment")["what"] == "as the results record it"

    project.write("models/base/model_card.json", json.dumps({"environment": here | {"torch": "0.1"}}))
    project.write("data/metrics/m1/scores.json", json.dumps({"environment": here | {"device": "cuda (H0)"}}))
    project.write("data/metrics/m1/counts.json", "{}")
    differences = of("environment")
    assert [finding["status"] for finding in differences] == ["differs", "differs"]
    assert differences[0]["what"] == f"torch is {here['torch']} here, was 0.1 for models/base"
    assert differences[1]["what"] == f"device is {here['device']} here, was cuda (H0) for data/metrics/m1/scores.json"


def test_a_device_that_is_not_here_is_a_problem(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    project.replace("params.yaml", "device: auto", "device: cuda")

    (problem,) = [finding for finding in examine() if finding["status"] == "problem"]
    assert "no CUDA device is visible" in problem["what"]


def test_a_lock_file_that_breaks_off_is_a_problem_and_the_steps_fix_it(project: Project) -> None:
    whole = project.read("dvc.lock")
    project.write("dvc.lock", whole[: whole.index("md5:") + 2])
    finding = only("lock_file")
    assert finding["status"] == "problem"
    assert re.search(r"dvc.lock: .*line \d+", finding["what"])
    for command in commands(finding):
        project.run(command)
    assert project.read("dvc.lock") == whole
    assert only("lock_file")["status"] == "ok"


def test_outs_that_do_not_fit_on_the_disk_or_into_memory_are_problems(project: Project) -> None:
    lock = project.read("dvc.lock")
    project.write("dvc.lock", re.sub(r"(path: models/base\n.*\n.*\n\s+size: )\d+", rf"\g<1>{10**16}", lock))

    assert only("disk")["status"] == only("memory")["status"] == "problem"
    assert "a whole rerun writes 10000 TB" in only("disk")["what"]


def test_a_folder_that_is_not_the_root_is_a_problem_with_the_way_there(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.path / "data")
    finding = of("repository")[0]
    assert finding["status"] == "problem"
    assert commands(finding) == [f"cd {project.path.resolve()}"]


def test_a_project_in_a_folder_of_a_larger_repository_is_as_good_as_one_of_its_own(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(project.path / ".git")
    above = Project(tmp_path / "above")
    shutil.copytree(project.path, above.path / "inner", symlinks=True)
    above.run("git init -q -b main && git config user.name t && git config user.email t@example.com")
    above.run("cd inner && rm -rf .dvc/tmp && dvc config core.no_scm false && git -C .. add -A && git commit -qm all")
    monkeypatch.chdir(above.path / "inner")
    assert of("repository")[0] == {
        "check": "repository",
        "status": "ok",
        "what": str((above.path / "inner").resolve()),
        "steps": [],
    }
    monkeypatch.chdir(above.path / "inner" / "data")
    assert of("repository")[0]["status"] == "problem"


@pytest.mark.parametrize("concluded", [False, True])
def test_marks_of_a_merge_in_the_lock_file_are_a_problem_and_the_steps_fix_it(
    project: Project, concluded: bool
) -> None:
    lock = project.read("dvc.lock")
    for side in ("left", "right"):
        project.run(f"git checkout -q -b {side} main")
        project.write("dvc.lock", lock.replace("schema: '2.0'", f"# {side}\nschema: '2.0'"))
        project.commit(side)
    assert project.run("git merge left", check=False).returncode == 1
    if concluded:
        project.commit("merged, marks and all")
    finding = only("merge")
    assert finding["status"] == "problem"
    assert finding["what"].startswith("dvc.lock:1: a merge left its marks")
    assert "align doctor" in only("lock_file")["what"]
    first, second = commands(finding)
    project.run(first)
    assert second == "dvc repro"
    assert not of("merge")
    assert only("lock_file")["status"] == "ok"


def test_marks_of_a_merge_in_params_are_named_with_their_line(project: Project) -> None:
    project.write(
        "params.yaml", "<<<<<<< HEAD\nseed: 1\n=======\nseed: 2\n>>>>>>> other\n" + project.read("params.yaml")
    )
    assert only("merge")["what"].startswith("params.yaml:1: a merge left its marks")
    assert commands(only("merge")) == ["git add params.yaml"]


def test_line_ends_of_windows_are_a_problem_and_the_steps_fix_it(project: Project) -> None:
    assert not of("line ends")
    project.run("rm notes.txt dvc.yaml && git -c core.autocrlf=true checkout -- notes.txt dvc.yaml")
    finding = only("line ends")
    assert (finding["status"], finding["what"]) == ("problem", "CRLF in dvc.yaml, notes.txt")
    for command in commands(finding):
        project.run(command)
    assert not of("line ends")
    assert "\r" not in project.read("dvc.yaml")


def test_a_key_that_no_stage_takes_is_a_problem_before_the_stage_runs(project: Project) -> None:
    assert only("params")["status"] == "ok"
    project.replace("params.yaml", "kl_coef: 0.05", "kl_coef: -1")
    assert only("params")["status"] == "problem"
    assert only("params")["what"].startswith("params.yaml: ppo.kl_coef: should be greater than or equal to 0")


def test_broken_params_are_one_problem_and_no_traceback(project: Project) -> None:
    project.write("params.yaml", "a: [")
    (problem,) = [finding for finding in examine() if finding["status"] == "problem"]
    assert problem["what"].startswith("params.yaml: not valid YAML")


def test_git_that_is_not_installed_is_a_problem(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(project.path))
    assert of("repository")[0]["what"] == "git is not installed, and DVC needs it"


def test_a_running_dvc_is_named_and_is_no_problem(slow: Project) -> None:
    with running(slow, "dvc repro") as process:
        wait_for(stage_runs(slow))
        finding = only("locks")
        assert finding["status"] == "differs"
        assert f"PID {process.pid}" in finding["what"]

    # Killed: DVC takes the entries of dead processes out by itself.
    assert only("locks")["status"] == "ok"
    slow.write("wait.yaml", "wait: 0\n")
    slow.run("dvc repro -q")


def test_a_lock_entry_whose_pid_is_of_another_program_by_now_is_removed(slow: Project) -> None:
    with running(slow, "dvc repro") as process:
        wait_for(stage_runs(slow))
    slow.replace(".dvc/tmp/rwlock", f'"pid": {process.pid}', f'"pid": {os.getpid()}')
    slow.write("wait.yaml", "wait: 0\n")
    assert slow.run("dvc repro -q", check=False).returncode != 0

    finding = only("locks")
    assert finding["status"] == "problem"
    for command in commands(finding):
        slow.run(command)
    assert only("locks")["status"] == "ok"
    slow.run("dvc repro -q")


@pytest.mark.parametrize("text", ["", '{"read": {"a', "[]"])
def test_a_lock_file_that_was_cut_off_is_removed(project: Project, text: str) -> None:
    project.write(".dvc/tmp/rwlock", text)
    project.write("data/seed/more.txt", "x\n")
    assert project.run("dvc repro -q", check=False).returncode != 0

    finding = only("locks")
    assert finding["status"] == "problem"
    for command in commands(finding):
        project.run(command)
    assert only("locks")["status"] == "ok"
    project.run("dvc repro -q")


@pytest.mark.parametrize(
    ("lock", "stopped"),
    [
        (".git/index.lock", "git add -A"),
        (".git/refs/exps/stash.lock", "dvc exp run -q -S dpo.beta=0.2"),
    ],
)
def test_a_lock_of_git_that_was_left_is_removed(project: Project, lock: str, stopped: str) -> None:
    project.write(lock, "")
    project.write("notes.txt", "my notes\n")
    assert project.run(stopped, check=False).returncode != 0

    finding = only("locks")
    assert finding["status"] == "problem"
    assert commands(finding) == [f"rm {lock}"]
    project.run(f"rm {lock}")
    project.run(stopped)
    assert only("locks")["status"] == "ok"


def test_a_lock_of_a_git_that_runs_is_no_problem(project: Project) -> None:
    project.write("staged.txt", "staged\n")
    project.run("git add staged.txt")
    with running(project, "git -c core.editor='touch started && sleep 600 #' commit -a") as process:
        wait_for(stage_runs(project))
        finding = only("locks")
        assert (finding["status"], finding["steps"]) == ("differs", [])
        assert finding["what"] == f".git/index.lock is held, probably by PID {process.pid}"


def corrupt(project: Project, out: str, file: str = "") -> Path:
    """Spoil the object of an out (of its list of files, for a folder without `file`) and keep it read-only."""
    lock = YAML(typ="safe").load(project.read("dvc.lock"))["stages"].values()
    value: str = next(entry["md5"] for stage in lock for entry in stage["outs"] if entry["path"] == out)
    cache = project.path / ".dvc/cache/files/md5"
    if file:
        listing = json.loads((cache / value[:2] / value[2:]).read_bytes())
        value = next(entry["md5"] for entry in listing if entry["relpath"] == file)
    path = cache / value[:2] / value[2:]
    path.chmod(0o644)
    path.write_text("spoilt")
    path.chmod(0o444)
    return path


@pytest.mark.parametrize(
    ("out", "file", "stage", "here"),
    [
        ("data/m1/pairs.jsonl", "", "pairs", True),
        ("models/m1", "model.safetensors", "dpo", False),
        ("models/m1", "model.safetensors", "dpo", True),
        ("models/m1", "", "dpo", True),
    ],
)
def test_a_corrupt_object_is_found_by_the_deep_check_alone_and_the_steps_fix_it(
    project: Project, out: str, file: str, stage: str, here: bool
) -> None:
    path = corrupt(project, out, file)
    if file or out.startswith("data"):  # DVC trusts an object that is read-only, but for lists of files
        assert project.run("dvc status").stdout == "Data and pipelines are up to date.\n"
    assert of("cache") == []
    content = "data/m1/pairs.jsonl" if file == "" and out.startswith("data") else "models/m1/model.safetensors"
    wanted = project.read(content)
    if not here:
        project.run(f"rm -r {out}")

    finding = only("cache", "--deep")
    assert finding["status"] == "problem"
    assert str(path.relative_to(project.path)) in finding["what"]
    assert f"of stage {stage}" in finding["what"]
    remove, repair = finding["steps"]
    project.run(commands({"steps": [remove]})[0])
    project.run(re.findall("`([^`]+)`", repair)[-1])

    assert only("cache", "--deep")["status"] == "ok"
    project.run(f"rm -r {out} && dvc checkout -q")
    assert project.read(content) == wanted


def test_a_corrupt_object_of_no_stage_of_now_is_only_to_be_removed(project: Project) -> None:
    old = project.path / ".dvc/cache/files/md5/00/00000000000000000000000000000a"
    old.parent.mkdir()
    old.write_text("x")
    finding = only("cache", "--deep")
    assert "nothing here needs it" in finding["what"]
    project.run(commands(finding)[0])
    assert only("cache", "--deep")["status"] == "ok"


def test_libraries_that_do_not_load_are_a_problem_and_no_traceback(project: Project) -> None:
    broken = project.write("broken/torch/__init__.py", "raise OSError('libtorch.so: cannot open')\n").parent.parent
    code = "import sys; from align.cli.main import main; main(['doctor'])"
    path = os.pathsep.join([str(broken), *filter(None, sys.path)])
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=project.path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )

    assert result.returncode == 1
    assert "the libraries do not load (libtorch.so: cannot open)" in result.stdout
    assert "Traceback" not in result.stderr
