"""The code that a stage imports, read from the files without running them: to tell whether a result is of this code."""

import ast
import hashlib
from pathlib import Path

from align.core.files import sha256

ROOT = Path()
PACKAGES = ("align", "stages")
LAZY = ("align/backends/vllm.py", "align/backends/openai.py", "align/judge/checkers.py")  # imported when params ask


def code_hashes(stage: str, root: Path = ROOT) -> set[str]:
    """Return what `align.run.provenance.code_hash` is in a process of a stage's module, with each lazy import or none.

    Args:
        stage: name of a stage, with or without the model's (`judge@m1`).
        root: the folder of the project.

    Returns:
        Hex SHA-256; empty if there is no such stage.
    """
    module = root / "stages" / f"{stage.split('@')[0].split('_iteration')[0]}.py"
    if not module.is_file():
        return set()
    files = import_closure(module, root)
    extras = [set[Path](), *({root / name} for name in LAZY)]
    found = [files.union(*(import_closure(extra, root) for extra in more if extra.is_file())) for more in extras]
    return {_hash(each, root) for each in found}


def import_closure(module: Path, root: Path = ROOT) -> set[Path]:
    """Return the files that importing `module` reads, packages' `__init__.py` among them; not what functions import."""
    todo, closure = [module], set[Path]()
    while todo:
        path = todo.pop()
        if path not in closure:
            closure.add(path)
            todo += _imported(path, root)
    return closure


def _imported(path: Path, root: Path) -> set[Path]:
    try:
        body = ast.parse(path.read_text(encoding="utf-8")).body
    except (SyntaxError, ValueError):
        return set()  # being edited: its hash is another anyway
    modules = {".".join(path.relative_to(root).with_suffix("").parts)}
    for node in body:
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    found = set()
    for name in modules:
        parts = name.split(".")
        if parts[0] in PACKAGES:
            found |= {root.joinpath(*parts[:end], "__init__.py") for end in range(1, len(parts))}
            found.add(root.joinpath(*parts).with_suffix(".py"))
    return {file for file in found if file.is_file()}


def _hash(files: set[Path], root: Path) -> str:
    own = sorted(files | set((root / "prompts").rglob("*.jinja")))
    lines = [f"{file.relative_to(root).as_posix()} {sha256(file)}\n" for file in own]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
