"""Validation of the whole params.yaml: each section against the settings of the stages that read it."""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

from align.core.errors import InputError
from align.core.params import OPTIONAL, Params, Settings

ROOT = Path(__file__).parents[3]
STAGE = ROOT / "align/run/stage.py"  # reads section `runtime` for the stages


def settings_by_section() -> dict[str, type[Settings]]:
    """Return the class that reads each section, from the stages' calls: `params.section("sft", SFTSettings)`.

    `sources` gets the class of one entry, from `params.source(name, SourceSettings)`.
    """
    classes: dict[str, type[Settings]] = {}
    for path in (STAGE, *sorted((ROOT / "stages").rglob("*.py"))):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(
                    ast.Attribute(attr="section" | "optional_section"), [ast.Constant(str(section)), ast.Name(name)]
                ):
                    classes.setdefault(section, load(module, name))
                case ast.Call(ast.Attribute(attr="source"), [_, ast.Name(name)]):
                    classes["sources"] = load(module, name)
    return classes


def validate_params(params: Params) -> int:
    """Check every section as the stages do, and return how many there are; importing the stages takes seconds."""
    _ = params.seed
    classes = settings_by_section()
    for section, settings in classes.items():
        if section == "sources":
            for name in params.values[section]:
                params.source(name, settings)
        else:
            (params.optional_section if section in OPTIONAL else params.section)(section, settings)
    return len(classes)


def load(module: str, name: str) -> Any:
    """Import a module and return what it calls `name`; libraries that do not load are an `InputError`."""
    try:
        return getattr(import_module(module), name)
    except (ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"the libraries do not load ({reason}); run `pip install -r requirements.txt`") from None
