"""`align doctor`."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import click

from align.cli.doctor.environment import check_environment, check_packages
from align.cli.doctor.experiment import check_experiment
from align.cli.doctor.findings import Finding
from align.cli.doctor.locks import check_locks
from align.cli.doctor.repository import check_repository
from align.cli.doctor.storage import check_cache, check_storage
from align.cli.doctor.unfinished import check_unfinished
from align.cli.project.settings import load, validate_params
from align.core.errors import InputError, printable
from align.core.params import Params


def check_params() -> Iterator[Finding]:
    """Check that every key of params.yaml is known and in range, and that the base takes the adapters."""
    params = Params.read()
    yield Finding("params", "ok", f"{validate_params(params)} sections, every key known and in range")
    base = Path("models/base")
    if (base / "config.json").is_file():
        settings = params.optional_section("lora", load("align.models.adapters", "LoraSettings"))
        if settings is not None:
            load("align.models.adapters", "check_lora")(base, settings)


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_packages,
    check_repository,
    check_params,
    check_locks,  # before the steps that run git, which a lock stops
    check_storage,
    check_experiment,
    check_environment,
    check_unfinished,
)


@click.command()
@click.option("--deep", is_flag=True, help="Also hash every object in DVC's cache (a few seconds per gigabyte).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
def doctor(deep: bool, as_json: bool) -> None:
    """Check what would stop a run on this machine, or make its results differ from the ones that are here.

    Prints a line per check: ok, differs or problem, and how to fix it. Exits with 1 if there is a problem.
    """
    findings = []
    for finding in _examine(deep):
        findings.append(finding)
        if not as_json:
            click.echo("\n".join(map(printable, finding.lines())))
    if as_json:
        click.echo(printable(json.dumps([asdict(finding) for finding in findings], ensure_ascii=False)))
    if any(finding.status == "problem" for finding in findings):
        raise SystemExit(1)


def _examine(deep: bool) -> Iterator[Finding]:
    reported = set()
    for check in (*CHECKS, check_cache) if deep else CHECKS:
        try:
            yield from check()
        except (InputError, OSError) as error:
            message = getattr(error, "message", str(error))
            if message not in reported:  # several checks read params.yaml
                reported.add(message)
                yield Finding(check.__name__.removeprefix("check_"), "problem", message)
