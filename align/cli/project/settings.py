"""Check of `align doctor`: params.yaml as a whole, each section with the settings of the stages that read it."""

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from align.cli.doctor.findings import Finding
from align.core.errors import InputError
from align.core.params import Params, Settings

STAGES = Path(__file__).parents[3] / "stages"


def settings_by_section() -> dict[str, type[Settings]]:
    """Return the class that reads each section, found where a stage asks for it: `params.section("sft", SFTSettings)`.

    Of `sources`, it reads an entry (`params.source(name, SourceSettings)`).

    Raises:
        InputError: a library that a stage needs is missing or broken.
    """
    found: dict[str, type[Settings]] = {}
    for path in sorted(STAGES.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(ast.Attribute(attr="section"), [ast.Constant(str(section)), ast.Name(settings)]):
                    found.setdefault(section, _load(path, settings))
                case ast.Call(ast.Attribute(attr="source"), [_, ast.Name(settings)]):
                    found["sources"] = _load(path, settings)
    return found


def validate_params(params: Params) -> int:
    """Check every section as the stages do, and return how many there are; it imports their libraries, seconds.

    Raises:
        InputError: the first key that is unknown, missing or out of range.
    """
    _ = params.seed
    sections = settings_by_section()
    for section, settings in sections.items():
        if section != "sources":
            params.section(section, settings)
        else:
            for name in params.values[section]:
                params.source(name, settings)
    return len(sections)


def check_params() -> Iterator[Finding]:
    """Tell whether every key of params.yaml is one that a stage takes."""
    yield Finding("params", "ok", f"{validate_params(Params.read())} sections, every key known and in range")


def _load(path: Path, settings: str) -> type[Settings]:
    try:
        loaded: type[Settings] = getattr(
            import_module(".".join(path.relative_to(STAGES.parent).with_suffix("").parts)), settings
        )
    except (ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"the libraries do not load ({reason}); run `pip install -r requirements.txt`") from None
    return loaded
