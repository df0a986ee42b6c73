"""A folder in which stages run with other params or data: what the benchmarks of whole runs share."""

import os
import subprocess
import sys
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


def project_params() -> dict[str, Any]:
    """Return the project's params.yaml."""
    params: dict[str, Any] = YAML().load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    return params


def write_params(workspace: Path, changes: Changes) -> None:
    """Write the project's params with other values: `{"seed": 18, "ppo": {"num_updates": 6}}`."""
    params = project_params()
    for section, values in changes.items():
        if isinstance(values, Mapping):
            params[section].update(values)
        else:
            params[section] = values
    workspace.mkdir(parents=True, exist_ok=True)
    with (workspace / "params.yaml").open("w", encoding="utf-8") as stream:
        YAML().dump(params, stream)


def run(workspace: Path, module: str, *arguments: str) -> None:
    """Run a module of this project in the workspace."""
    click.echo(f"> python -m {' '.join((module, *arguments))}")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", module, *arguments], cwd=workspace, env=environment, check=True)
