"""Checks of `align doctor`: Python, packages, device and backend, against the pins and the recorded results."""

import platform
import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from align.cli.doctor.findings import Finding
from align.cli.project.settings import load
from align.core.errors import InputError
from align.core.files import read_json
from align.core.params import Params

PROJECT = Path("pyproject.toml")
PINS = Path("requirements.txt")
INSTALL = f"`{Path(sys.executable).name} -m pip install -r {PINS}`"


def environment_here() -> dict[str, Any]:
    """Return what a stage that ran now would record: versions, device, threads; raise `InputError` if it cannot run."""
    runtime = Params.read().section("runtime", load("align.run.runtime", "RuntimeSettings"))
    return dict(load("align.run.provenance", "environment")(runtime))


def check_packages() -> Iterator[Finding]:
    """Compare Python with pyproject.toml, and the installed packages with their pins."""
    text = PROJECT.read_text(encoding="utf-8") if PROJECT.is_file() else ""
    needed, python = re.search(r'^requires-python = "(.+)"', text, re.MULTILINE), platform.python_version()
    if needed and not SpecifierSet(needed[1]).contains(python, prereleases=True):
        yield Finding("python", "problem", f"{python} is not {needed[1]}", ("`rm -rf .venv && make setup`",))
    else:
        yield Finding("python", "ok", python)
    pinned, missing, other = 0, [], []
    for line in PINS.read_text(encoding="utf-8").splitlines() if PINS.is_file() else ():
        text = line.partition("#")[0].strip()
        if not text or text.startswith("-"):
            continue
        pinned += 1
        try:
            wanted = Requirement(text)
            installed = version(wanted.name)
        except InvalidRequirement:
            raise InputError(f"{PINS}: {text!r} is not a requirement; restore the file with `git checkout`") from None
        except PackageNotFoundError:
            missing.append(wanted.name)
            continue
        # A pin without a local version (+cpu, +cu128) allows every build; the recorded environment tells them apart.
        if not wanted.specifier.contains(Version(installed), prereleases=True):
            other.append(f"{wanted.name} {installed} (pinned {wanted.specifier})")
    if missing:
        yield Finding("packages", "problem", f"not installed: {', '.join(missing)}", (INSTALL,))
    if other:
        yield Finding("packages", "differs", ", ".join(other), (INSTALL,))
    if not missing and not other:
        yield Finding("packages", "ok", f"all {pinned} as pinned in {PINS}")


def check_environment() -> Iterator[Finding]:
    """Compare this environment with the ones that the results record."""
    here = environment_here()
    yield Finding("device", "ok", ", ".join(f"{key} {value}" for key, value in here.items()))
    results = ("models/*/model_card.json", "data/metrics/**/*.json", "data/eval/*.json")
    differences: dict[tuple[str, str], list[str]] = {}
    for path in (path for pattern in results for path in sorted(Path().glob(pattern))):
        then = read_json(path).get("environment", here)
        for key in dict.fromkeys((*then, *here)):
            if then.get(key) != here.get(key):
                name = path.as_posix().removesuffix("/model_card.json")
                differences.setdefault((key, str(then.get(key))), []).append(name)
    for (key, value), names in differences.items():
        what = f"{key} is {here.get(key)} here, was {value} for {', '.join(names)}"
        yield Finding("environment", "differs", what, ("rerunning its stages may give other bytes",))
    if not differences:
        yield Finding("environment", "ok", "as the results record it")
