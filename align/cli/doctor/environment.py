"""Checks of `align doctor`: Python, packages, device and settings, against the pins and what the results record."""

import os
import platform
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from align.cli.doctor.findings import Finding
from align.cli.project.cards import recorded_environment
from align.cli.project.machine import environment_here
from align.core.errors import InputError
from align.core.params import Params

PINS = Path("requirements.txt")
INSTALL = f"`{Path(sys.executable).name} -m pip install -r {PINS}`"


def check_python() -> Iterator[Finding]:
    """Compare Python's version with what the project asks for."""
    project = Path("pyproject.toml")
    if not project.is_file():
        return
    try:
        wanted = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["requires-python"]
    except (tomllib.TOMLDecodeError, KeyError) as error:
        raise InputError(f"{project}: requires-python: cannot read ({error})") from None
    here = platform.python_version()
    if SpecifierSet(wanted).contains(here, prereleases=True):
        yield Finding("python", "ok", here)
    else:
        yield Finding("python", "problem", f"{here}, but {wanted} is needed", ("make .venv anew: `make setup`",))


def check_packages() -> Iterator[Finding]:
    """Compare the installed packages with the pins."""
    if not PINS.is_file():
        yield Finding("packages", "differs", f"{PINS} is not here to compare with")
        return
    pinned, missing, other = 0, [], []
    for number, line in enumerate(PINS.read_text(encoding="utf-8").splitlines(), 1):
        text = line.partition("#")[0].strip()
        if not text or text.startswith("-"):
            continue
        try:
            wanted = Requirement(text)
        except InvalidRequirement as error:
            raise InputError(f"{PINS}:{number}: not a requirement ({' '.join(str(error).split())})") from None
        pinned += 1
        try:
            installed = version(wanted.name)
        except PackageNotFoundError:
            missing.append(wanted.name)
            continue
        # The build of torch is part of the environment below; a pin without one is for all of them.
        if not wanted.specifier.contains(Version(installed), prereleases=True):
            other.append(f"{wanted.name} {installed} (pinned {wanted.specifier})")
    if missing:
        yield Finding("packages", "problem", f"not installed: {', '.join(missing)}", (INSTALL,))
    if other:
        yield Finding("packages", "differs", ", ".join(other), (INSTALL,))
    if not missing and not other:
        yield Finding("packages", "ok", f"{pinned} as pinned in {PINS}")


def check_environment() -> Iterator[Finding]:
    """Compare this environment with those that the results record."""
    here = environment_here()
    yield Finding("here", "ok", ", ".join(f"{key} {value}" for key, value in here.items()))
    recorded: dict[str, dict[str, Any]] = {}
    silent = []
    for path in [*sorted(Path("models").glob("*/model_card.json")), *_measures()]:
        environment = recorded_environment(path)
        name = (path.parent if path.name == "model_card.json" else path).as_posix()
        if environment is not None:
            recorded[name] = environment
        elif path.name == "model_card.json":
            silent.append(name)
    differences: dict[tuple[str, str], list[str]] = {}
    for name, environment in recorded.items():
        for key in dict.fromkeys((*environment, *here)):
            then = str(environment.get(key, "nothing"))
            if then != str(here.get(key, "nothing")):
                differences.setdefault((key, then), []).append(name)
    for (key, then), names in differences.items():
        what = f"{key} is {here.get(key, 'nothing')} here, was {then} for {', '.join(names)}"
        yield Finding("environment", "differs", what, ("a rerun of its stages may give other bytes",))
    if silent:
        what = f"not recorded in the cards of {', '.join(silent)}"
        yield Finding("environment", "differs", what, ("the next run of their stages records it",))
    if recorded and not differences:
        yield Finding("environment", "ok", f"as recorded in {len(recorded)} results")
    if not recorded and not silent:
        yield Finding("environment", "ok", "no results here to compare with")


def check_device() -> Iterator[Finding]:
    """Tell on what the stages would run, and whether it has the cores."""
    values = Params.read().values["runtime"]
    device, threads = environment_here()["device"], values["num_threads"]
    cores = os.cpu_count() or 1
    if threads > cores:
        what = f"runtime.num_threads is {threads}, on {cores} cores: slower than with {cores}"
        yield Finding("device", "differs", what, ("set it and rerun, which gives other last bits",))
    cuda = "" if device.startswith("cuda") or values["device"] == "cpu" else "; no CUDA device is visible"
    yield Finding("device", "ok", f"{device}{cuda}, {cores} cores")


def check_quantization() -> Iterator[Finding]:
    """Tell what runtime.quantization needs, where it is set."""
    kind = Params.read().values["runtime"].get("quantization")
    if kind == "none":
        return
    try:
        found = f"{kind} by bitsandbytes {version('bitsandbytes')}"
    except PackageNotFoundError:
        yield Finding("quantization", "problem", f"{kind} needs bitsandbytes, which is not installed", (INSTALL,))
        return
    slow = "" if environment_here()["device"].startswith("cuda") else ": saves memory and no time on a CPU"
    yield Finding("quantization", "ok", found + slow)


def check_settings() -> Iterator[Finding]:
    """Name the settings with which nobody can promise the same bytes."""
    generation = Params.read().values["generation"]
    backend = generation.get("backend")
    if backend in ("vllm", "openai"):
        what = f"generation.backend is {backend}: its batches, and so its last bits, depend on the load"
        yield Finding("backend", "differs", what, ("for the same bytes set transformers",))
    elif generation.get("max_batch_tokens") is None:
        what = "generation.max_batch_tokens is null: batches are cut by the free memory, another cut is other last bits"
        yield Finding("backend", "differs", what, ("set a number for the same batches everywhere",))
    else:
        yield Finding("backend", "ok", f"{backend}, batches of {generation['max_batch_tokens']} tokens")


def _measures() -> list[Path]:
    return sorted([*Path("data/metrics").rglob("*.json"), *Path("data/eval").glob("*.json")])
