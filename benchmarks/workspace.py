"""Folders in which stages run with other params, data or a tiny model: what the benchmarks of whole runs share."""

import os
import subprocess
import sys
import venv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
Changes = Mapping[str, Any]


def link(workspace: Path, names: Iterable[str]) -> None:
    """Link files and folders of the project, such as `models/base`, into the workspace."""
    for name in names:
        target = workspace / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            target.symlink_to((ROOT / name).resolve(), target_is_directory=True)


def project_params(root: Path = ROOT) -> dict[str, Any]:
    """Return the params.yaml of the project, or of another folder."""
    params: dict[str, Any] = YAML().load((root / "params.yaml").read_text(encoding="utf-8"))
    return params


def write_params(workspace: Path, changes: Changes, root: Path = ROOT) -> None:
    """Write the params of `root` with other values: `{"seed": 18, "ppo": {"num_updates": 6}}`."""
    params = project_params(root)
    for section, values in changes.items():
        if isinstance(values, Mapping):
            params[section].update(values)
        else:
            params[section] = values
    workspace.mkdir(parents=True, exist_ok=True)
    with (workspace / "params.yaml").open("w", encoding="utf-8") as stream:
        YAML().dump(params, stream)


def project_environment() -> dict[str, str]:
    """Return the environment of a command in another checkout: this Python, that checkout's modules, no network."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "DVC_ROOT")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return inherited | {"PATH": path, "DVC_NO_ANALYTICS": "1", "HF_HUB_OFFLINE": "1"}


def tiny_clone(path: Path, changes: Changes, source: Path = ROOT, revision: str = "HEAD") -> Path:
    """Clone the committed project, with other params and a tiny random model, and return `path`.

    The clone has no cache, so everything runs. Params that an older project does not have are left out.
    """
    from tests.factories import build_tiny_source  # noqa: PLC0415 (loads torch; the tests import this module without it)

    subprocess.run(["git", "clone", "-q", "--no-checkout", str(source), str(path)], check=True)
    subprocess.run(["git", "checkout", "-q", "--detach", revision], cwd=path, check=True)
    build_tiny_source(path / "data/tiny")
    params = project_params(path)
    known = {
        section: {key: value for key, value in values.items() if key in params[section]}
        if isinstance(values, Mapping)
        else values
        for section, values in {**changes, "base_model": {"source": "data/tiny"}}.items()
        if section in params
    }
    write_params(path, known, path)
    return path


def environment(folder: Path, pins: list[str]) -> Path:
    """Return the Python of a virtual environment with these packages, which is made unless it is there."""
    python, made = folder.absolute() / "bin/python", folder / "pins.txt"
    if not made.exists() or made.read_text(encoding="utf-8").split() != pins:
        click.echo(f"installing {' '.join(pins)} in {folder}")
        venv.create(folder, with_pip=True, clear=True)
        (folder / ".gitignore").write_text("*\n", encoding="utf-8")  # the folder may be in the repository
        subprocess.run([python, "-m", "pip", "install", "-q", "--no-compile", *pins], check=True)
        made.write_text("\n".join(pins), encoding="utf-8")
    return python


def run(workspace: Path, module: str, *arguments: str) -> None:
    """Run a module of this project in the workspace."""
    click.echo(f"> python -m {' '.join((module, *arguments))}")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", module, *arguments], cwd=workspace, env=environment, check=True)
