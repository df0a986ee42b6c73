"""DVC's graph of the pipeline, under any params."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo import Repo
from networkx import dfs_postorder_nodes
from ruamel.yaml import YAML

from align.core.errors import InputError, quoted
from align.core.params import PARAMS_FILE


def stages_of(targets: Sequence[str], params: Mapping[str, Any], root: Path = Path()) -> dict[str, Any]:
    """Return DVC's stages that `targets` need (none: the pipeline) by name, each after those it depends on.

    The graph is that of the dvc.yaml files in `root`, under params that need not be those of params.yaml.
    """
    with TemporaryDirectory() as folder:
        for file in (*root.glob("dvc.yaml"), *root.glob("*/dvc.yaml")):
            (Path(folder) / file.relative_to(root)).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, Path(folder) / file.relative_to(root))
        YAML().dump(dict(params), Path(folder) / PARAMS_FILE)
        Path(folder, ".dvc").mkdir()
        Path(folder, ".dvc/config").write_text("[core]\n    no_scm = true\n", encoding="utf-8")
        try:
            with Repo(folder) as repo:
                graph = repo.index.graph
        except DvcException as error:
            reason = " ".join(str(error).split()).replace(f"{os.path.relpath(folder)}/", "")
            raise InputError(f"DVC makes no graph of these params: {reason}; fix them or dvc.yaml") from None
    names = {stage: f"{stage.path_in_repo}:{stage.name}".removeprefix("dvc.yaml:") for stage in graph}
    wanted: dict[str, Any] = {}
    for target in targets or ["dvc.yaml"]:
        starts = [stage for stage in names if target in (names[stage], names[stage].split("@")[0], stage.path_in_repo)]
        if not starts:
            raise InputError(f"no stage {quoted(target)} here; `dvc stage list --all` names them")
        wanted |= {names[stage]: stage for start in starts for stage in dfs_postorder_nodes(graph, start)}
    return wanted
