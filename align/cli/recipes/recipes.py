"""Recipes: overlays in recipes/NAME.yaml that hold only the keys that differ from the default params.

Maps are merged key by key, nested ones too. Lists are replaced whole, and so are `iterations` and `sources`, whose keys
are names that the user chose. null is a value like any other. A key that the defaults lack is an error.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Self

from ruamel.yaml import YAML
from ruamel.yaml.nodes import CollectionNode, MappingNode, Node

from align.cli.doctor.repository import running
from align.cli.project.git import git
from align.core.errors import InputError, quoted
from align.core.files import read_bytes
from align.core.params import PARAMS_FILE, Params, parse

RECIPES = Path("recipes")
WHOLE = ("iterations", "sources")
MARK = "# Recipe: "  # starts a params.yaml that a recipe has changed
Edit = tuple[Node, Node, Node, Node]


@dataclass(frozen=True)
class Recipe:
    """An overlay, with what the comment lines at its top say: a summary, then `# Hardware: ...` and the like."""

    name: str
    path: Path
    summary: str
    hardware: str
    command: str  # `# Run:`
    extends: str | None  # the recipe that this one is merged on top of

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the comment lines at the top of `path`."""
        text = read_bytes(path).decode("utf-8", errors="replace")
        lines = list(takewhile(lambda line: line.startswith("# "), text.splitlines()))
        header = {name: value.strip() for name, _, value in (line[2:].partition(": ") for line in lines[1:])}
        summary, get = lines[0][2:] if lines else "", header.get
        return cls(path.stem, path, summary, get("Hardware", ""), get("Run", "dvc repro"), get("Extends"))


def recipes() -> dict[str, Recipe]:
    """Return all recipes by name, sorted."""
    if not (paths := list(RECIPES.glob("*.yaml"))):
        raise InputError(f"{RECIPES}: holds no recipe (NAME.yaml); run from the repository's root")
    return {path.stem: Recipe.read(path) for path in sorted(paths, key=lambda path: path.stem)}


def recipe(name: str) -> Recipe:
    """Return the recipe of that name."""
    if name not in (known := recipes()):
        raise InputError(f"no recipe is named {quoted(name)}; there are: {', '.join(known)}")
    return known[name]


def defaults() -> str:
    """Return the last committed params.yaml that no recipe has changed: recipes are merged over it."""
    for commit in (git("log", "--format=%H", "--", str(PARAMS_FILE)) or "").split():
        text = git("show", f"{commit}:./{PARAMS_FILE}")
        if text is not None and not text.startswith(MARK):
            return f"{text}\n"
    raise InputError(f"{PARAMS_FILE}: recipes are merged over the committed one, and git has none; commit it first")


def render(one: Recipe) -> str:
    """Return the text of params.yaml with a recipe merged over the defaults; their comments and order stay."""
    chain = [one]
    while parent := chain[0].extends:
        if parent in (other.name for other in chain):
            raise InputError(f"{chain[0].path}: `# Extends: {parent}` closes a circle; remove the line")
        chain.insert(0, recipe(parent))
    text = default = defaults()
    for overlay in chain:
        text = _merge(text, overlay.path)
    note = f"{MARK}{one.name}; delete this line to make these settings the defaults (docs/RUNNING.md)"
    return text if text == default else f"{note}\n# Run: {one.command}\n{text}"


def merged(name: str) -> dict[str, Any]:
    """Return the values of the default params with recipe `name` merged in; keys are checked, values are not."""
    one = recipe(name)
    return Params(parse(render(one).encode(), one.path), one.path).values


def unsaved() -> str | None:
    """Return why params.yaml should not be overwritten now, and what to do; None if nothing would be lost."""
    if dvc := running("dvc"):
        return f"DVC is running (PID {min(dvc)}), and its next stages would read other params; wait for it"
    if not PARAMS_FILE.exists() or not git("status", "--porcelain", "--", str(PARAMS_FILE)):
        return None
    text = read_bytes(PARAMS_FILE).decode("utf-8", errors="replace")
    mine = [one for one in recipes().values() if text.startswith(f"{MARK}{one.name};")]
    if text in (defaults(), *map(render, mine)):
        return None
    return f"it has uncommitted edits; commit them (`git diff {PARAMS_FILE}` shows them)"


def _merge(base: str, path: Path) -> str:
    """Replace values in the text of `base` by those of the overlay at `path`, as they are written there."""
    data = read_bytes(path)
    parse(base.encode(), PARAMS_FILE)
    parse(data, path)
    overlay = data.decode()
    below, above = (YAML(typ="safe", pure=True).compose(text).value for text in (base, overlay))
    for old_key, old, key, value in sorted(_edits(below, above, path), key=lambda edit: -edit[0].end_mark.index):
        # From the key's end on, since a block starts in the next line.
        start, end, new = old_key.end_mark.index, _end(old), overlay[key.end_mark.index : _end(value)]
        rest = base[end:]
        if (gap := re.match(" +(?=#)", rest)) and "\n" not in base[start:end] + new:  # the comment keeps its column
            rest = " " * max(2, end + gap.end() - start - len(new)) + rest[gap.end() :]
        base = base[:start] + new + rest
    return base


def _edits(base: list[Any], overlay: list[Any], path: Path, prefix: str = "") -> Iterator[Edit]:
    """Yield key and value as in the base, and as in the overlay, of all that the overlay replaces."""
    known = {str(key.value): (key, value) for key, value in base}
    for key, value in overlay:
        if (name := str(key.value)) not in known:
            raise InputError(f"{path}: {prefix}{name}: unknown key; known keys: {', '.join(known)}")
        old_key, old = known[name]
        if isinstance(old, MappingNode) and isinstance(value, MappingNode) and f"{prefix}{name}" not in WHOLE:
            yield from _edits(old.value, value.value, path, f"{prefix}{name}.")
        else:
            yield old_key, old, key, value


def _end(node: Node) -> int:
    """Return where a value ends; of a block, where its last value does, since comments follow until YAML's end."""
    if not isinstance(node, CollectionNode) or node.flow_style or not node.value:
        return int(node.end_mark.index)
    return _end(node.value[-1][1] if isinstance(node, MappingNode) else node.value[-1])
