"""Pushes to real servers, which are killed in the middle: what is in docs/SHARING.md. Run by `make test-remotes`."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.committed import REPOSITORY
from tests.dvc_project import Project
from tests.faults.lab import poll
from tests.servers.remotes import SERVERS, Server, commands_of

pytestmark = [pytest.mark.remotes, pytest.mark.timeout(600)]

MB = 1_000_000
BIG = "data/big.bin"
TOTAL = 70 * MB  # what is pushed
PUSHED = "| remote | push, s | fresh clone and pull, s |"
KILLED = (
    "| remote | MB there at the kill | objects whole | cut off | other files | push ended after, s "
    "| pushed by the retry | retry, s |"
)
FIVE = list(SERVERS)
FOUR = [name for name in FIVE if name != "wsgidav"]
DVC_YAML = """
stages:
  base_model:
    cmd: mkdir -p models/base && head -c 3000000 data/big.bin > models/base/model.safetensors
    deps: [data/big.bin]
    outs:
      - models/base: {push: false}
  dpo:
    cmd: mkdir -p models/m1 && tail -c 2000000 models/base/model.safetensors > models/m1/adapter_model.safetensors
    deps: [models/base]
    outs: [models/m1]
"""


class Clone(Project):
    """A project with a cache of its own, that runs this `align`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.env |= {"PYTHONPATH": str(REPOSITORY), "DVC_SITE_CACHE_DIR": str(path.parent / f"{path.name}.site")}

    def copy_to(self, path: Path) -> "Clone":
        shutil.copytree(self.path, path, symlinks=True)
        return Clone(path)

    def set_up(self, server: Server, fresh: bool = False) -> None:
        """Run the commands of docs/SHARING.md for a server; in a fresh clone, those that git does not bring."""
        for line in commands_of(server.heading):
            for example, real in server.examples.items():
                line = line.replace(example, real)
            if line.startswith("export "):
                name, _, value = line.removeprefix("export ").partition("=")
                self.env[name] = value
            elif not fresh or " --local " in line:
                self.run(line)

    def fresh_clone(self, path: Path, server: Server) -> "Clone":
        """Return a clone with all that the remote has; what is not pushed is not there."""
        self.run(f"git clone -q {self.path} {path}")
        clone = Clone(path)
        clone.set_up(server, fresh=True)
        clone.run("dvc pull --allow-missing")
        return clone

    def align(self, command: str) -> subprocess.CompletedProcess[str]:
        return self.run(f"python -m align.cli.main {command}", check=False)

    def remote_check(self, options: str = "") -> dict[str, Any]:
        """Return what `align remote-check --json` says."""
        result = self.align(f"remote-check --json {options}")
        assert result.returncode in (0, 1), result.stderr
        report: dict[str, Any] = json.loads(result.stdout)
        assert result.returncode == int(len(report["bad"]) > len(report["repaired"]))
        return report

    def hashes(self) -> dict[str, str]:
        """Return the md5 of every file of data and models but the base."""
        files = [path for folder in ("data", "models") for path in sorted((self.path / folder).rglob("*"))]
        names = {path.relative_to(self.path).as_posix(): path for path in files if path.is_file()}
        return {
            name: hashlib.md5(path.read_bytes()).hexdigest()
            for name, path in names.items()
            if not name.startswith("models/base/")
        }


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A project with a file of 60 MB, a folder of files, a model, and a base that is not pushed."""
    clone = Clone(tmp_path_factory.mktemp("source") / "project")
    clone.path.mkdir()
    noise = random.Random(17)
    sizes = {BIG: 60 * MB} | {f"data/parts/{number}.bin": MB for number in range(8)}
    for name, size in sizes.items():
        path = clone.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise.randbytes(size))
    clone.write("dvc.yaml", DVC_YAML)
    clone.run("git init -q -b main && git config user.name t && git config user.email t@example.com && dvc init -q")
    clone.run("dvc config core.autostage false && dvc add -q data/big.bin data/parts && dvc repro -q")
    clone.commit("start")
    return clone


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Server]]:
    """Return a function that starts a server; all are ended with the session."""
    servers = []

    def make(name: str) -> Server:
        server = SERVERS[name](tmp_path_factory.mktemp(name) / "server")
        servers.append(server)
        server.start()
        return server

    yield make
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def tables() -> Iterator[dict[str, list[str]]]:
    """The rows of what was measured, by the head of their table; written to the file that `REMOTES_REPORT` names."""
    rows: dict[str, list[str]] = {PUSHED: [], KILLED: []}
    yield rows
    if "REMOTES_REPORT" in os.environ:
        text = "\n".join(f"{head}\n|{'---|' * (head.count('|') - 1)}\n{''.join(rows[head])}" for head in rows)
        Path(os.environ["REMOTES_REPORT"]).write_text(text, encoding="utf-8")


class Killed:
    """A push that was cut off by the death of its server, or for a local remote by its own, and then run again."""

    def __init__(self, source: Clone, server: Server, folder: Path) -> None:
        self.server = server
        self.clone = source.copy_to(folder / "clone")
        self.clone.set_up(server)
        self.clone.commit("remote")
        self.log = folder / "log"
        with self.log.open("wb") as log:
            push = subprocess.Popen(
                ["dvc", "push"],
                cwd=self.clone.path,
                env=self.clone.env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        poll(lambda: self._is_half_done() or push.poll() is not None, "the middle of a push")
        if server.name == "local":
            os.killpg(push.pid, signal.SIGKILL)
        else:
            server.kill()
        began = time.monotonic()
        self.returncode = push.wait()
        self.seconds_to_give_up = time.monotonic() - began
        self.stored = server.stored()
        names = server.objects()
        self.whole = [path for path in names if is_whole(path)]
        self.cut_off = [path for path in names if not is_whole(path)]
        self.others = len([path for path in server.data.rglob("*") if path.is_file()]) - len(names)
        server.start()
        began = time.monotonic()
        self.said = self.clone.run("dvc push").stdout
        self.seconds_to_retry = time.monotonic() - began

    def row(self) -> str:
        """Return it as a line of a table."""
        pushed = re.search(r"(\d+) files? pushed|(Everything is up to date)", self.said)
        assert pushed, self.said
        counts = f"{len(self.whole)} | {len(self.cut_off)} | {self.others}"
        times = f"{self.seconds_to_give_up:.0f} | {pushed[1] or 0} | {self.seconds_to_retry:.1f}"
        return f"| {self.server.name} | {self.stored / MB:.0f} | {counts} | {times} |\n"

    def _is_half_done(self) -> bool:
        return self.server.stored() > TOTAL / 4 and (self.server.name != "wsgidav" or self._big_is_cut_off())

    def _big_is_cut_off(self) -> bool:
        return any(MB < path.stat().st_size < 60 * MB for path in self.server.objects())


def is_whole(path: Path) -> bool:
    return hashlib.md5(path.read_bytes()).hexdigest() == path.parent.name + path.stem


@pytest.fixture(scope="session")
def killed(
    source: Clone, start: Callable[[str], Server], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Killed]:
    """Return a function that has the push to a server killed, once a session."""
    done: dict[str, Killed] = {}

    def kill(name: str) -> Killed:
        if name not in done:
            done[name] = Killed(source, start(name), tmp_path_factory.mktemp(f"killed-{name}"))
        return done[name]

    return kill


@pytest.mark.parametrize("name", FOUR)
def test_after_a_kill_in_mid_push_the_next_push_loses_nothing(
    name: str, killed: Callable[[str], Killed], tmp_path: Path, tables: dict[str, list[str]]
) -> None:
    run = killed(name)
    tables[KILLED].append(run.row())

    assert TOTAL / 4 < run.stored < TOTAL, "not in the middle"
    assert run.returncode != 0
    assert not run.cut_off, "half an object under its final name"
    assert re.search(r"\d+ files? pushed", run.said)
    assert run.clone.remote_check()["bad"] == []
    assert run.clone.fresh_clone(tmp_path / "fresh", run.server).hashes() == run.clone.hashes()


def test_wsgidav_keeps_half_an_object_which_dvc_calls_in_sync_and_remote_check_repairs(
    killed: Callable[[str], Killed], tmp_path: Path, tables: dict[str, list[str]]
) -> None:
    run = killed("wsgidav")
    tables[KILLED].append(run.row())
    assert run.returncode != 0
    assert run.cut_off

    assert "Everything is up to date" in run.clone.run("dvc push").stdout
    assert "in sync" in run.clone.run("dvc status -c").stdout
    pulled = run.clone.copy_to(tmp_path / "pulled")
    shutil.rmtree(pulled.path / ".dvc/cache")
    (pulled.path / BIG).unlink()
    assert pulled.run(f"dvc pull {BIG}", check=False).returncode == 1
    pulled.run(f"dvc pull --allow-missing {BIG}")
    assert not (pulled.path / BIG).exists()
    pulled.run(f"dvc remote modify --local webdav verify false && dvc pull {BIG}")
    assert (pulled.path / BIG).stat().st_size < 60 * MB
    found = repair(run.clone)
    assert found[BIG] == "damaged"
    hashes = run.clone.hashes()
    assert {hashes[path] for path in found} == {path.parent.name + path.name for path in run.cut_off}

    assert run.clone.fresh_clone(tmp_path / "fresh", run.server).hashes() == run.clone.hashes()


@pytest.mark.parametrize("name", FIVE)
def test_what_a_server_has_lost_cut_off_or_changed_is_found_and_repaired_by_what_is_printed(
    name: str, source: Clone, start: Callable[[str], Server], tmp_path: Path, tables: dict[str, list[str]]
) -> None:
    server = start(name)
    clone = source.copy_to(tmp_path / "clone")
    clone.set_up(server)
    clone.commit("remote")
    began = time.monotonic()
    clone.run("dvc push")
    pushed = time.monotonic() - began

    paths = [BIG, "data/parts/0.bin", "models/m1/adapter_model.safetensors"]
    oids = clone.hashes()
    with server.damaging(oids[paths[0]]) as file:
        os.truncate(file, 20 * MB)
    with server.damaging(oids[paths[1]]) as file:
        file.unlink()
    with server.damaging(oids[paths[2]]) as file:
        file.write_bytes(file.read_bytes()[:-1] + b"\0")

    assert "in sync" in clone.run("dvc status -c").stdout
    assert "Everything is up to date" in clone.run("dvc push").stdout
    assert [one["paths"] for one in clone.remote_check("--quick")["bad"]] == [[path] for path in paths[:2]]
    assert repair(clone) == dict(zip(paths, ("damaged", "missing", "damaged"), strict=True))

    began = time.monotonic()
    assert clone.fresh_clone(tmp_path / "fresh", server).hashes() == clone.hashes()
    tables[PUSHED].append(f"| {name} | {pushed:.1f} | {time.monotonic() - began:.1f} |\n")


def repair(clone: Clone) -> dict[str, str]:
    """Run the command that `align remote-check` prints for what is bad; return the fault of each path before."""
    result = clone.align("remote-check")
    assert result.returncode == 1
    [command] = set(re.findall(r"run `align (remote-check [^`]+)`", result.stdout))
    repaired = clone.align(command)
    assert repaired.returncode == 0, repaired.stdout + repaired.stderr
    assert clone.align("remote-check").returncode == 0
    return {path: fault for fault, path in re.findall(r"^(damaged|missing) +(.+?): ", result.stdout, re.M)}


@pytest.mark.parametrize("name", FIVE)
def test_keys_and_passwords_are_neither_in_git_nor_on_the_remote(name: str, killed: Callable[[str], Killed]) -> None:
    run = killed(name)
    committed = run.clone.run("git log -p --all && git ls-files -o --exclude-standard").stdout
    config = run.clone.read(".dvc/config")
    names = [path.as_posix() for path in run.server.store.rglob("*")]
    texts = [path.read_text(errors="replace") for path in run.server.objects() if path.stat().st_size < MB]

    assert ".dvc/config.local" not in run.clone.run("git ls-files").stdout.splitlines()
    for secret in run.server.secrets:
        assert not [text for text in (committed, config, run.clone.read("dvc.lock"), *names, *texts) if secret in text]
