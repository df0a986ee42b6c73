"""A DVC project of trivial stages, for what looks into dvc.lock, git and the cache."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from align.cli.main import main
from tests.committed import write_params

# models/m1 is made of models/base and of data/m1/pairs.jsonl, which comes from models/base too.
DVC_YAML = """
vars: [wait.yaml]
stages:
  base_model:
    cmd: mkdir -p models/base && cp data/seed/text.txt models/base/model.safetensors
    deps: [data/seed/text.txt, align/core, stages/base_model.py]
    params: [seed]
    outs: [models/base]
  pairs:
    cmd: sleep ${wait} && cat models/base/model.safetensors data/seed/more.txt > data/m1/pairs.jsonl
    deps: [data/seed/more.txt, models/base]
    params: [seed, dpo]
    outs: [data/m1/pairs.jsonl]
  dpo:
    cmd: mkdir -p models/m1 && cat models/base/model.safetensors data/m1/pairs.jsonl > models/m1/model.safetensors
    deps: [data/m1/pairs.jsonl, models/base]
    outs: [models/m1]
"""


class Project:
    """A git repository with DVC in it, and commands that run there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.env = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(path.parent),
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(path.parent / "site"),
        }

    def run(self, command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            ["bash", "-c", command], cwd=self.path, env=self.env, capture_output=True, text=True, check=False
        )
        assert not check or result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
        return result

    def write(self, name: str, text: str) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def read(self, name: str) -> str:
        return (self.path / name).read_text(encoding="utf-8")

    def replace(self, name: str, old: str, new: str) -> None:
        text = self.read(name)
        assert old in text
        self.write(name, text.replace(old, new))

    def commit(self, message: str) -> str:
        self.run(f"git add -A && git commit -qm '{message}'")
        return self.run("git rev-parse --short HEAD").stdout.strip()

    def copy(self, path: Path) -> "Project":
        shutil.copytree(self.path, path, symlinks=True)
        return Project(path)

    def enter(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> "Project":
        """Return a copy, which is the working directory."""
        project = self.copy(path)
        monkeypatch.chdir(path)
        monkeypatch.setenv("DVC_SITE_CACHE_DIR", project.env["DVC_SITE_CACHE_DIR"])
        return project


def make_project(path: Path) -> Project:
    """Make the project, reproduce it and commit it."""
    path.mkdir(parents=True)
    project = Project(path)
    project.write("data/seed/text.txt", "a text\n")
    project.write("data/seed/more.txt", "more text\n")
    project.write("stages/base_model.py", "x = 1\n")
    project.write("align/core/files.py", "y = 1\n")  # a dependency on the folder, without an __init__.py to import
    project.write("align/core/rows.py", "z = 1\n")
    project.write("notes.txt", "notes\n")
    (path / "data/m1").mkdir()
    (path / "data/m1/.keep").touch()
    # Tests change these.
    changes = {"runtime": {"device": "auto", "num_threads": 2}, "dpo": {"max_length": 256}}
    write_params(path, changes)
    project.write("wait.yaml", "wait: 0\n")
    project.write("dvc.yaml", DVC_YAML)
    project.run("git init -q -b main && git config user.name t && git config user.email t@example.com && dvc init -q")
    project.run("dvc config core.autostage false && dvc repro -q")
    project.commit("start")
    return project


def align(*arguments: str) -> Result:
    """Run an `align` command in this process, in the working directory; color=True keeps escape sequences."""
    return CliRunner().invoke(main, arguments, color=True)


def error_of(*arguments: str) -> str:
    """Return the one line of an error."""
    result = align(*arguments)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
    return result.stderr


@pytest.fixture(scope="session")
def finished_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("finished") / "project")


@pytest.fixture
def project(finished_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy of the project, as the working directory."""
    return finished_project.enter(tmp_path / "project", monkeypatch)
