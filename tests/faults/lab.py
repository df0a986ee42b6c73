"""What the tests of real faults share: a clone of the project in which stage `generate_responses@m1` is next."""

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.committed import copy_project, write_params
from tests.factories import build_tiny_source
from tests.pipeline.test_repro import SMALL, Clone
from tests.shared import shared

STAGE = "generate_responses@m1"
RESPONSES = "data/m1/responses.jsonl"
NUM_ROWS = 48
# Six batches, each long enough to be met in the middle of the stage.
PARAMS: dict[str, Any] = SMALL | {
    "runtime": {"batch_size": 8},
    "generate_responses": {"num_responses": 8, "max_new_tokens": 256, "temperature": 1.5, "top_p": 1.0},
}
HOT = "generate_responses.temperature=1.4"  # what experiments change


def poll(condition: Callable[[], bool], what: str) -> None:
    """Wait until something is so."""
    end = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """Tell whether a process has ended; a zombie has."""
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


class Lab(Clone):
    """A clone with its own copy of everything, and what is on disk of its unfinished work."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.env |= {"ALIGN_CHECKPOINT_SECONDS": "0", "PYTHONUNBUFFERED": "1"}
        self.log = path.parent / "log"

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a command in a process group of its own; what it says goes to `log`."""
        with self.log.open("wb") as stream:
            return subprocess.Popen(
                command,
                cwd=self.path,
                env=self.env,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Where the tests run in the background, a shell has them ignore Ctrl-C, and so would what they start.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def start_until(self, batches: int, *command: str) -> subprocess.Popen[bytes]:
        """Start a command and return when so many batches are on disk."""
        process = self.start(*command)
        poll(lambda: len(self.rows()) >= 8 * batches or process.poll() is not None, f"{batches} batches")
        assert process.poll() is None, self.said()
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Kill a command with all that it has started."""
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def said(self) -> str:
        """Return what the command has said; tests compare it line by line, so progress bars end with lines too."""
        return self.log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")

    @property
    def journal(self) -> Path:
        """The file of the stage's finished rows."""
        [path] = self.journals()
        return path

    def journals(self) -> list[Path]:
        """Return the files of the stage's finished rows, one an identity."""
        return sorted((self.path / ".align/resume" / STAGE).glob("*/rows-0.jsonl"))

    def rows(self) -> list[int]:
        """Return the numbers of the rows that are on disk, in the order in which they came."""
        lines = [line for path in self.journals() for line in path.read_bytes().splitlines(keepends=True)]
        entries = [json.loads(line) for line in lines if line.endswith(b"\n")]
        return [number for request, values in entries if request != "max_batch_tokens" for number, _ in values]

    @property
    def stage_pid(self) -> int:
        """The process of the stage."""
        return int((self.journal.parent / "lock-0").read_text())

    def limited(self, size: int, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command that can write no file beyond this size: to the kernel and to Python, as on a full disk."""
        return subprocess.run(
            command,
            cwd=self.path,
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
        )

    def lock(self) -> bytes:
        """Return dvc.lock."""
        return (self.path / "dvc.lock").read_bytes()

    def recorded(self, revision: str) -> str:
        """Return the hash that dvc.lock has of the responses at a revision."""
        return _responses_md5(self.run("git", "show", f"{revision}:dvc.lock").stdout)

    def recorded_now(self) -> str:
        """Return the hash that dvc.lock has of the responses now."""
        return _responses_md5(self.lock().decode())

    def experiments(self) -> list[str]:
        """Return the references of all experiments."""
        names = self.run("git", "for-each-ref", "--format=%(refname)", "refs/exps").stdout.split()
        return [name for name in names if not name.startswith(("refs/exps/exec", "refs/exps/celery"))]


def _responses_md5(lock: str) -> str:
    stages = YAML(typ="safe").load(lock)["stages"]
    [found] = [out["md5"] for out in stages[STAGE]["outs"] if out["path"] == RESPONSES]
    return str(found)


class Prepared:
    """The clone before the stage, and what the stage makes of it undisturbed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clone = folder / "clone"

    def build(self) -> None:
        """Make it."""
        copy_project(self.clone)
        build_tiny_source(self.clone / "data/tiny")
        write_params(self.clone, PARAMS)
        lab = Lab(self.clone)
        lab.run("git", "init", "-q", "-b", "main")
        # Without a name DVC makes no experiment from a workspace with changes.
        lab.run("git", "config", "user.name", "t")
        lab.run("git", "config", "user.email", "t@example.com")
        lab.run("dvc", "repro", "-q", "generate_prompts@m1")
        lab.run("git", "add", "-A")
        lab.run("git", "commit", "-qm", "start")
        shutil.rmtree(self.clone / ".align")

        undisturbed = self.copy(self.folder / "undisturbed")
        hot = self.copy(self.folder / "hot")
        undisturbed.run("dvc", "repro", "-q", STAGE)
        params = hot.path / "params.yaml"
        params.write_text(
            params.read_text(encoding="utf-8").replace(
                "temperature: 1.5\n  top_p: 1.0", "temperature: 1.4\n  top_p: 1.0"
            )
        )
        hot.run("python", "-m", "stages.generate_responses", "m1", "m0")

    def copy(self, folder: Path, done: bool = False) -> Lab:
        """Return a copy in another folder, before the stage or after it."""
        source = self.folder / "undisturbed/clone" if done else self.clone
        shutil.copytree(source, folder / "clone", symlinks=True)
        return Lab(folder / "clone")

    @property
    def expected_lock(self) -> bytes:
        """dvc.lock after the stage."""
        return (self.folder / "undisturbed/clone/dvc.lock").read_bytes()

    @property
    def expected(self) -> bytes:
        """The stage's responses."""
        return (self.folder / "undisturbed/clone" / RESPONSES).read_bytes()

    @property
    def hot_md5(self) -> str:
        """The hash of the responses with `HOT`."""
        return hashlib.md5((self.folder / "hot/clone" / RESPONSES).read_bytes()).hexdigest()


def prepare(factory: pytest.TempPathFactory) -> Prepared:
    """Return the prepared clone, whichever file asks first."""
    return Prepared(shared(factory, "faults", lambda folder: Prepared(folder).build()))
