"""Unfinished work in `align doctor`: what killed processes leave."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from align.cli.doctor.findings import Finding
from align.cli.doctor.unfinished import check_unfinished
from align.core.params import SECTIONS
from align.run.release import DONE_FILE
from tests.committed import REPOSITORY

READ = ("seed", "iterations", "runtime", "ppo")
PARAMS = "".join(f"{section}: {{}}\n" for section in SECTIONS if section not in READ)
PARAMS += """
seed: 17
iterations: {m1: m0}
runtime: {device: cpu, dtype: float32, quantization: none, optim: adamw_torch, num_threads: 1, batch_size: 8}
ppo: {kl_coef: 0.05, init: m1}
"""
# A stage's process: its work begins when all its code is imported, and it is killed with that unfinished.
SCRIPT = """
import sys, time
from pathlib import Path
import align.judge.request
from align.core.params import Params
from align.run.work import Work
from align.run.runtime import RuntimeSettings
params = Params.read()
runtime = params.section("runtime", RuntimeSettings)
params.used["ppo"] = params.values["ppo"]
work = Work("judge@m1", params, runtime, [Path("input.txt")])
work.rows("answers").finish({0: "x" * 5000})
print("ready", flush=True)
time.sleep(600)
"""


@contextmanager
def stage(root: Path) -> Iterator[None]:
    """Run a stage's process until it has unfinished work, and kill it in the end."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("DVC_")}
    env["PYTHONPATH"] = str(root)
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], cwd=root, env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the work of a stage that was killed."""
    root = tmp_path_factory.mktemp("killed")
    for name in ("align", "prompts"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "params.yaml").write_text(PARAMS)
    (root / "input.txt").write_text("input")
    with stage(root):
        pass
    return root


@pytest.fixture
def root(killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the workspace, as the working directory."""
    shutil.copytree(killed, tmp_path / "root")
    monkeypatch.chdir(tmp_path / "root")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path / "root"


def unfinished() -> Finding:
    (finding,) = check_unfinished()
    return finding


def test_the_work_of_a_killed_stage_is_reported_and_the_step_deletes_it(root: Path) -> None:
    finding = unfinished()
    assert finding.status == "ok"
    assert re.fullmatch(r"judge@m1: [\d.]+ kB, \d+ \w+ old: `dvc repro` resumes from it .*", finding.what)

    (step,) = finding.steps
    subprocess.run(re.findall("`(.+)`", step)[0], shell=True, check=True)
    assert unfinished().what == "no stage was killed"


def test_work_that_a_process_holds_is_not_offered_for_deletion(root: Path) -> None:
    shutil.rmtree(".align")
    with stage(root):
        assert unfinished().what.startswith("judge@m1 is running, its work is in .align/resume/judge@m1/")
        assert unfinished().steps == ()
    assert len(unfinished().steps) == 1


def test_work_that_waits_for_dvc_is_told_from_that_of_a_killed_stage(root: Path) -> None:
    next(root.glob(".align/resume/*/*/")).joinpath(DONE_FILE).write_text("{}")
    assert unfinished().what.endswith("done; kept until DVC has recorded the outputs")
