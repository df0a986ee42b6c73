"""Which stages `dvc repro` runs, by DVC's own graph, under params that need not be those of params.yaml."""

import os
import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from align.core.errors import InputError, quoted
from align.core.params import PARAMS_FILE

COMMAND = ["dvc", "repro"]


def targets_of(command: str) -> list[str]:
    """Return the stages that a `dvc repro ...` names; none where it is for the whole pipeline, or another command."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    return [word for word in words[2:] if not word.startswith("-")] if words[:2] == COMMAND else []


def stages_of(targets: Sequence[str], params: Mapping[str, Any], root: Path) -> list[Any]:
    """Return the stages that targets need, as DVC has them, each after those it depends on.

    Args:
        targets: as `dvc repro` takes them; none: the pipeline of dvc.yaml.
        params: to build the graph with.
        root: of the repository, of which the dvc.yaml files are taken.

    Raises:
        InputError: a target is no stage, DVC makes no graph of the params, or there is no dvc.yaml.
    """
    if not (root / "dvc.yaml").is_file():
        raise InputError(f"{root / 'dvc.yaml'}: no such file; run from the repository's root")
    # DVC takes longer to import than the commands that do without it take altogether.
    dvc_repo, exceptions = import_module("dvc.repo"), import_module("dvc.exceptions")
    with tempfile.TemporaryDirectory() as folder:
        for file in (root / "dvc.yaml", *sorted(root.glob("*/dvc.yaml"))):
            copy = Path(folder) / file.relative_to(root)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)
        (Path(folder) / ".dvc").mkdir()
        (Path(folder) / ".dvc/config").write_text("[core]\n    no_scm = true\n", encoding="utf-8")
        with (Path(folder) / PARAMS_FILE).open("w", encoding="utf-8") as stream:
            YAML().dump(dict(params), stream)
        try:
            with dvc_repo.Repo(folder) as repo:
                graph = repo.index.graph
                stages = list(graph)
        except exceptions.DvcException as error:
            reason = " ".join(str(error).split())
            for path in (folder, os.path.relpath(folder)):
                reason = reason.replace(f"{path}/", "")
            raise InputError(f"DVC makes no graph of these params: {reason}") from None
    wanted = [stage for target in targets or ["dvc.yaml"] for stage in _named(target, stages)]
    order = import_module("networkx").dfs_postorder_nodes
    return list(dict.fromkeys(stage for target in wanted for stage in order(graph, target)))


def name_of(stage: Any) -> str:
    """Return a stage's name from the repository's root, as `dvc repro` takes it."""
    where = str(stage.path_in_repo)
    return str(stage.name) if where == "dvc.yaml" else f"{where}:{stage.name}"


def _named(target: str, stages: Sequence[Any]) -> list[Any]:
    """Return the stages that a target stands for: one, those of a list (`evaluate`), or all of a dvc.yaml."""
    found = [
        stage for stage in stages if target in (name_of(stage), name_of(stage).rpartition("@")[0], stage.path_in_repo)
    ]
    if not found:
        raise InputError(f"no stage {quoted(target)}; `dvc stage list --all` names them")
    return found
