"""Processes that are killed or get in each other's way, for real: nothing is lost, and the bytes are the same.

An experiment in the workspace (`dvc exp run`) that was killed leaves: HEAD detached at the commit it was on; the
changed params.yaml, staged; changes to tracked files and untracked files as they were, with nothing staged. The same
command goes on from the rows. To give it up instead, and have the workspace back as it was:

    git checkout <branch>
    git restore -SW params.yaml dvc.lock data/summary
    dvc checkout

The second line undoes all changes of params.yaml, the user's among them: set the changed key back by hand to keep them.
An experiment outside of it (`--temp`, or queued) leaves a folder in .dvc/tmp/exps, and the workspace alone.
"""

import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.faults.lab import HOT, NUM_ROWS, RESPONSES, STAGE, Lab, Prepared, gone, poll, prepare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
REPRO = ("dvc", "repro", STAGE)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(tmp_path_factory)


@pytest.fixture
def lab(prepared: Prepared, tmp_path: Path) -> Lab:
    return prepared.copy(tmp_path)


def assert_no_row_was_written_twice(lab: Lab) -> None:
    assert sorted(lab.rows()) == list(range(NUM_ROWS))


def goes_on_from(rows: int) -> str:
    return f"m1 responses: resuming with {rows} of {NUM_ROWS} rows finished"


def test_a_stage_killed_twice_with_a_torn_line_goes_on_and_ends_in_the_same_bytes(lab: Lab, prepared: Prepared) -> None:
    dvc = lab.start_until(2, *REPRO)
    os.kill(lab.stage_pid, signal.SIGKILL)
    assert dvc.wait() != 0
    assert f"failed to reproduce '{STAGE}'" in lab.said()
    assert not (lab.path / RESPONSES).exists()
    first = len(lab.rows())

    dvc = lab.start_until(first // 8 + 1, *REPRO)
    lab.kill(dvc)
    assert goes_on_from(first) in lab.said()
    second = len(lab.rows())
    content = lab.journal.read_bytes()
    last_line = content.splitlines(keepends=True)[-1]
    lab.journal.write_bytes(content[: -len(last_line) // 2])
    assert len(lab.rows()) == second - 8

    assert goes_on_from(second - 8) in lab.run(*REPRO).stdout
    assert lab.lock() == prepared.expected_lock
    assert_no_row_was_written_twice(lab)


def test_ctrl_c_ends_in_one_line_and_the_stage_goes_on_to_the_same_bytes(lab: Lab, prepared: Prepared) -> None:
    dvc = lab.start_until(2, *REPRO)
    os.killpg(dvc.pid, signal.SIGINT)
    assert dvc.wait() != 0
    assert "Aborted!" in lab.said().splitlines()
    assert "Traceback" not in lab.said()
    rows = len(lab.rows())

    assert goes_on_from(rows) in lab.run(*REPRO).stdout
    assert lab.lock() == prepared.expected_lock
    assert_no_row_was_written_twice(lab)


@pytest.mark.parametrize("shell", ["becomes the stage", "waits for the stage"])
def test_a_stage_whose_dvc_is_killed_stops_and_one_started_at_once_ends_in_the_same_bytes(
    shell: str, lab: Lab, prepared: Prepared, tmp_path: Path
) -> None:
    # DVC runs commands with $SHELL: bash replaces itself with the last one, others (dash, as /bin/sh often is) do not.
    script = tmp_path / "shell"
    script.write_text(
        '#!/bin/sh\n/bin/sh "$@"\nexit $?\n' if shell == "waits for the stage" else "#!/bin/sh\nexec $2\n"
    )
    script.chmod(0o755)
    lab.env["SHELL"] = str(script)
    dvc = lab.start_until(2, *REPRO)
    orphan = lab.stage_pid
    dvc.kill()
    dvc.wait()

    lab.run(*REPRO)
    assert gone(orphan)
    assert f"Error: {STAGE}: DVC was killed" in lab.said()
    assert lab.lock() == prepared.expected_lock
    assert_no_row_was_written_twice(lab)


def workspace(lab: Lab) -> tuple[str, ...]:
    """Return what a user sees of the workspace."""
    commands = [("git", "symbolic-ref", "HEAD"), ("git", "status", "--porcelain"), ("git", "diff", "HEAD")]
    files = [(lab.path / name).read_text() for name in ("params.yaml", "dvc.lock", "README.md", "notes.txt", RESPONSES)]
    return *(lab.run(*command).stdout for command in commands), *files


def test_an_experiment_killed_in_the_workspace_goes_on_or_is_taken_back_with_the_users_changes_kept(
    prepared: Prepared, tmp_path: Path
) -> None:
    lab = prepared.copy(tmp_path, done=True)
    lab.run("git", "commit", "-qam", "run")
    shutil.rmtree(lab.path / ".align")
    with (lab.path / "README.md").open("a") as readme:
        readme.write("The user's change.\n")
    (lab.path / "notes.txt").write_text("The user's file.\n")
    before = workspace(lab)
    experiment = ("dvc", "exp", "run", "-S", HOT, STAGE)

    lab.kill(lab.start_until(2, *experiment))
    assert lab.run("git", "symbolic-ref", "-q", "HEAD", check=False).returncode == 1
    assert "temperature: 1.4" in lab.run("git", "diff", "--cached").stdout
    assert (lab.path / "README.md").read_text() == before[5]

    lab.run("git", "checkout", "main")
    lab.run("git", "restore", "-SW", "params.yaml", "dvc.lock", "data/summary")
    lab.run("dvc", "checkout", RESPONSES, "data/metrics/m1/responses.json")
    assert workspace(lab) == before
    assert "didn't change" in lab.run(*REPRO).stdout.splitlines()[-2]

    assert "m1 responses: resuming with" in lab.run(*experiment).stdout
    [made] = lab.experiments()
    assert lab.recorded(made) == prepared.hot_md5
    assert lab.run("git", "symbolic-ref", "HEAD").stdout == "refs/heads/main\n"


def test_a_queued_experiment_that_is_killed_is_gone_on_with_by_a_temporary_one(lab: Lab, prepared: Prepared) -> None:
    lab.run("dvc", "exp", "run", "--queue", "-S", HOT, STAGE)
    lab.start("dvc", "queue", "start").wait()
    poll(lambda: len(lab.rows()) >= 16, "rows of the queued experiment")
    # The worker has left the process group of `dvc queue start`.
    os.killpg(os.getpgid(lab.stage_pid), signal.SIGKILL)
    rows = len(lab.rows())
    assert lab.journal.is_relative_to(lab.path / ".align/resume")
    assert lab.run("git", "status", "--porcelain").stdout == ""

    dvc = lab.start_until(rows // 8 + 1, "dvc", "exp", "run", "--temp", "-S", HOT, STAGE)
    lab.kill(dvc)
    assert goes_on_from(rows) in lab.said()
    rows = len(lab.rows())
    assert goes_on_from(rows) in lab.run("dvc", "exp", "run", "--temp", "-S", HOT, STAGE).stdout
    [made] = lab.experiments()
    assert lab.recorded(made) == prepared.hot_md5
    assert lab.run("git", "status", "--porcelain").stdout == ""
    assert_no_row_was_written_twice(lab)


def test_of_two_equal_experiments_at_once_the_second_waits_and_takes_the_rows_of_the_first(
    lab: Lab, prepared: Prepared
) -> None:
    experiment = ("dvc", "exp", "run", "--temp", "-S", HOT, STAGE)
    first = lab.start_until(1, *experiment)
    pid = lab.stage_pid
    os.kill(pid, signal.SIGSTOP)  # it does not end before the other is there
    lab.log = lab.log.with_name("second")
    second = lab.start(*experiment)
    told = f"{STAGE}: waits for process {pid}, which does the same work"
    poll(lambda: told in lab.said() or second.poll() is not None, "the second's word")
    assert len(lab.rows()) < NUM_ROWS
    os.kill(pid, signal.SIGCONT)
    assert (first.wait(), second.wait()) == (0, 0), lab.said()
    assert goes_on_from(NUM_ROWS) in lab.said()
    assert len(lab.experiments()) == 2
    assert {lab.recorded(name) for name in lab.experiments()} == {prepared.hot_md5}


def test_a_second_repro_in_the_same_workspace_is_refused_and_the_first_is_undisturbed(
    lab: Lab, prepared: Prepared
) -> None:
    first = lab.start_until(1, *REPRO)
    second = lab.run(*REPRO, check=False)
    assert second.returncode != 0
    assert "is busy, it is being blocked by" in second.stderr
    assert f"(PID {first.pid})" in second.stderr
    assert first.wait() == 0, lab.said()
    assert lab.lock() == prepared.expected_lock
    assert_no_row_was_written_twice(lab)
