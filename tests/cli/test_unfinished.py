"""`align resume`: the work of real processes, killed and running; what is deleted and what never is."""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from align.cli.doctor.unfinished import all_work, delete
from align.run.release import DONE_FILE
from tests.conftest import REPOSITORY
from tests.dvc_project import align, error_of

# A stage's process: its work begins when all its code is imported, and it is killed with that unfinished.
SCRIPT = """
import os, sys, time
from pathlib import Path
import stages.judge
from align.core.params import Params
from align.run.work import Work
from align.run.runtime import RuntimeSettings
params = Params.read()
runtime = params.section("runtime", RuntimeSettings)
params.used["ppo"] = params.values["ppo"]
work = Work(sys.argv[1], params, runtime, [Path("input.txt")])
rows = work.rows("answers")
rows.finish({0: "x" * 1000, 1: "y"})
rows.finish({1: "again"})
work.rows("more").finish({0: "z"})
work.rows("max_batch_tokens").finish({0: 4096})
(work.folder / "checkpoint-5").mkdir()
(work.folder / "checkpoint-5/state.bin").write_bytes(bytes(5000))
print("ready", flush=True)
time.sleep(float(sys.argv[2]))
"""


@contextmanager
def stage(root: Path, name: str) -> Iterator[subprocess.Popen[str]]:
    """Run a stage's process until it has unfinished work, and kill it in the end."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("DVC_")}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, name, "600"],
        cwd=root,
        env=env | {"PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()


def prepare(root: Path) -> None:
    shutil.copyfile(REPOSITORY / "params.yaml", root / "params.yaml")
    (root / "stages").symlink_to(REPOSITORY / "stages")
    (root / "input.txt").write_text("input")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("killed")
    prepare(root)
    with stage(root, "judge@m1"):
        pass
    return root


@pytest.fixture
def root(killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the work of a stage that was killed."""
    prepare(tmp_path)
    shutil.copytree(killed / ".align", tmp_path / ".align")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def works() -> list[dict[str, Any]]:
    result = align("resume", "list", "--json")
    assert result.exit_code == 0, result.output
    value: list[dict[str, Any]] = json.loads(result.output)
    return value


def reasons() -> list[str]:
    (work,) = works()
    found: list[str] = work["unused_because"]
    return found


def folders(root: Path) -> list[Path]:
    return sorted(path for path in (root / ".align/resume").glob("*/*") if path.is_dir())


def add_copy(root: Path, name: str, days: float = 0) -> Path:
    """Copy the work for another stage, as old as that."""
    (source,) = folders(root)[:1]
    target = root / ".align/resume" / name / "0123456789abcdef"
    shutil.copytree(source, target)
    for path in [target, *target.rglob("*")]:
        when = path.stat().st_mtime - days * 86400
        os.utime(path, (when, when))
    return target


def test_the_work_of_a_killed_stage_is_listed_with_its_rows_and_would_be_used(root: Path) -> None:
    (work,) = works()

    assert (work["stage"], work["rows"], work["running"], work["unused_because"]) == ("judge@m1", 3, [], [])
    (folder,) = folders(root)
    assert work["folder"] == folder.relative_to(root).as_posix()
    assert work["size"] >= sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) > 6000
    text = align("resume", "list").output
    assert re.fullmatch(r"judge@m1  \w{16}  stopped  3 rows  [\d.]+ kB  \d+ \w+ old\n", text)


def test_work_that_is_done_and_waits_for_dvc_is_told_from_that_of_a_killed_stage(root: Path) -> None:
    (folder,) = folders(root)
    (folder / DONE_FILE).write_text("{}")
    assert works()[0]["done"]
    assert "  done, until DVC has recorded it  " in align("resume", "list").output


def test_a_row_that_a_kill_cut_off_is_not_counted(root: Path) -> None:
    (path,) = root.rglob("rows-0.jsonl")
    path.write_bytes(path.read_bytes() + b'["answers", [[7, "cut')
    assert works()[0]["rows"] == 3


def test_what_keeps_it_from_being_used_is_named(root: Path) -> None:
    params = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(
        params.replace("kl_coef: 0.05", "kl_coef: 0.02").replace("beta: 0.1", "beta: 0.9")
    )
    assert reasons() == ["params changed: ppo.kl_coef 0.05 -> 0.02"]  # dpo is not among what it has read
    assert "params changed: ppo.kl_coef 0.05 -> 0.02: will not be used" in align("resume", "list").output
    (root / "params.yaml").write_text(params)

    (root / "input.txt").write_text("other")
    assert reasons() == ["inputs changed: input.txt"]
    (root / "input.txt").unlink()
    assert reasons() == ["inputs changed: input.txt is not here"]
    (root / "input.txt").write_text("input")

    (root / "stages").unlink()
    shutil.copytree(REPOSITORY / "stages", root / "stages")
    assert reasons() == []
    with (root / "align/judge/request.py").open("a") as stream:
        stream.write("# changed\n")
    assert reasons() == ["code changed"]


def test_another_version_of_a_library_keeps_it_from_being_used(root: Path) -> None:
    (path,) = root.rglob("identity.json")
    identity = json.loads(path.read_text())
    here = identity["environment"]["torch"]
    identity["environment"]["torch"] = "0.1"
    path.write_text(json.dumps(identity))
    assert reasons() == [f'environment changed: torch "0.1" -> "{here}"']


@pytest.mark.parametrize("data", [None, b"", b"{", b"[1]", b'{"stage": 1, "params": 2}', b"\xff"])
def test_work_without_a_whole_identity_is_listed_as_not_used(root: Path, data: bytes | None) -> None:
    (path,) = root.rglob("identity.json")
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    assert reasons() == ["no identity: killed before it had one"]


def test_no_work_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert align("resume", "list").output == "no unfinished work\n"
    assert align("resume", "prune").output == "freed 0 bytes\n"


def test_the_work_of_a_running_process_is_never_deleted_and_that_of_a_killed_one_is(root: Path) -> None:
    shutil.rmtree(root / ".align")
    with stage(root, "judge@m2") as process:
        (folder,) = folders(root)
        assert works()[0]["running"] == [str(process.pid)]
        assert f"running (PID {process.pid})" in align("resume", "list").output
        (folder / "lock-0").write_text("1")  # what the file says is not what counts
        for flags in ([], ["--older-than", "0"], ["judge@m2"], ["--dry-run"]):
            output = align("resume", "prune", *flags).output
            assert re.match(r"kept, a process holds it: judge@m2 .*\nfreed 0|kept.*\nwould free 0", output), output
            assert (folder / "checkpoint-5/state.bin").stat().st_size == 5000

    assert works()[0]["running"] == []
    assert align("resume", "prune").output.startswith("deleted judge@m2 ")
    assert not folder.exists()


def test_one_process_of_several_is_enough_to_keep_the_work(root: Path) -> None:
    (folder,) = folders(root)
    code = (
        "import fcntl, time; stream = open('lock-1', 'a'); fcntl.flock(stream, fcntl.LOCK_EX); "
        "print('x', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=folder, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert align("resume", "prune").output.startswith("kept")
        process.kill()
    assert folder.exists()
    assert align("resume", "prune").output.startswith("deleted")


def test_work_that_a_process_takes_up_while_it_is_looked_at_is_kept(root: Path) -> None:
    (work,) = all_work()
    with (work.folder / "lock-0").open("r+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert not delete(work)
        assert (work.folder / "identity.json").is_file()
    assert delete(work)
    assert not work.folder.exists()


def test_a_pid_alone_keeps_nothing(root: Path) -> None:
    (folder,) = folders(root)
    (folder / "lock-0").write_text(str(os.getpid()))
    assert works()[0]["running"] == []
    assert align("resume", "prune").output.startswith("deleted")


def test_a_dry_run_tells_the_same_bytes_and_deletes_nothing(root: Path) -> None:
    size = works()[0]["size"]
    dry = align("resume", "prune", "--dry-run").output
    assert dry.splitlines()[-1] == f"would free {size} bytes"
    assert len(folders(root)) == 1
    assert align("resume", "prune").output.splitlines()[-1] == f"freed {size} bytes"
    assert folders(root) == []


def test_prune_keeps_to_the_stages_the_age_and_the_use_that_are_named(root: Path) -> None:
    (fresh,) = folders(root)
    old = add_copy(root, "judge@m2", days=10)
    align("resume", "prune", "judge@m2", "--older-than", "20")
    assert folders(root) == [fresh, old]
    align("resume", "prune", "--older-than", "9")
    assert folders(root) == [fresh]

    other = add_copy(root, "ppo")
    identity = json.loads((other / "identity.json").read_text())
    (other / "identity.json").write_text(json.dumps(identity | {"code": "other"}))
    align("resume", "prune", "--unusable")
    assert folders(root) == [fresh]
    assert not other.exists()
    other = add_copy(root, "ppo")
    align("resume", "prune", "judge@m1")
    assert folders(root) == [other]


def test_a_stage_without_work_is_an_error_that_names_those_with(root: Path) -> None:
    assert error_of("resume", "prune", "jugde@m1") == (
        "Error: no unfinished work of jugde@m1; there is work of: judge@m1\n"
    )
    assert len(folders(root)) == 1


def test_control_characters_of_an_identity_never_reach_the_terminal(root: Path) -> None:
    (path,) = root.rglob("identity.json")
    identity = json.loads(path.read_text())
    identity["params"]["ppo"]["\x1b[2J"] = "\x1b]0;title\x07"
    identity["inputs"]["\x9b2J"] = "x"
    path.write_text(json.dumps(identity))
    for flags in ([], ["--json"]):
        assert re.findall(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", align("resume", "list", *flags).output) == []
