"""The layout: which folder imports which, and how large folders and modules are."""

import subprocess
from graphlib import TopologicalSorter
from pathlib import Path

from tests.committed import REPOSITORY
from tests.pipeline.test_pipeline import imported_modules

LAYERS = (
    {"core"},
    {"run", "data", "report", "compare", "checks"},
    {"models", "loop"},
    {"training", "generation", "cli"},
    {"backends", "dpo", "judge", "reward", "text"},
    {"ppo"},
)
# Folder of align/ -> folders that it may import, beside itself: those of the layers below. Nothing imports the command.
ALLOWED = {folder: set().union(*LAYERS[:i]) - {"cli"} for i, layer in enumerate(LAYERS) for folder in layer}
ALLOWED["stages"] = set().union(*LAYERS) - {"cli"}
ALLOWED["cli"] = ALLOWED["stages"] | {"stages"}  # it looks at all of it
MODULES = sorted(path for folder in ("align", "stages") for path in (REPOSITORY / folder).rglob("*.py"))
OURS = [path for folder in ("align", "stages", "tests", "benchmarks") for path in (REPOSITORY / folder).rglob("*.py")]


def folder_of(path: Path) -> str:
    """Return the folder of align/ that a module lies in, or `stages`."""
    parts = path.relative_to(REPOSITORY).parts
    return parts[1] if parts[0] == "align" else "stages"


def test_imports_go_down_only() -> None:
    for path in MODULES:
        for module in imported_modules(path):
            to, place = folder_of(module), folder_of(path)
            # A stage is a program: none imports another.
            assert to in ALLOWED[place] | ({place} - {"stages"}), f"{path}: {place} may not import {to}: {module}"


def test_there_is_no_import_circle() -> None:
    TopologicalSorter({path: imported_modules(path) for path in MODULES}).prepare()


def test_no_folder_has_more_than_15_modules_and_no_module_more_than_400_lines() -> None:
    for folder in {path.parent for path in OURS}:
        assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= 15, folder
    long = {path: lines for path in OURS if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 400}
    assert long == {}


def test_a_checkout_that_wants_line_ends_of_windows_gets_the_bytes_that_dvc_hashes(head: Path, tmp_path: Path) -> None:
    make = "git init -q && git add -A && git -c user.name=t -c user.email=t@t commit -qm all"
    subprocess.run(["bash", "-c", make], cwd=head, check=True)
    subprocess.run(["git", "clone", "-q", "-c", "core.autocrlf=true", str(head), str(tmp_path / "clone")], check=True)
    for name in ("dvc.yaml", "dvc.lock", "params.yaml", "stages/sft.py", "data/seed/preferences.jsonl"):
        assert (tmp_path / "clone" / name).read_bytes() == (head / name).read_bytes()
