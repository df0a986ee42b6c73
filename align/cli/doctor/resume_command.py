"""`align resume`."""

import json

import click

from align.cli.doctor.unfinished import all_work, delete, unfinished_lines, why_unused
from align.cli.project.units import show_size
from align.core.errors import InputError, printable


@click.group()
def resume() -> None:
    """Unfinished work of stages that were killed, in .align/resume: a stage that is run again goes on from it."""


@resume.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
def list_work(as_json: bool) -> None:
    """List it: stage, identity, size, age, finished rows, the process that is at it, and whether it would be used."""
    works = [(work, why_unused(work.folder)) for work in all_work()]
    if as_json:
        values = [work.as_dict() | {"unused_because": reasons} for work, reasons in works]
        click.echo(printable(json.dumps(values, ensure_ascii=False)))
        return
    for work, reasons in works:
        for line in unfinished_lines(work, reasons):
            click.echo(printable(line))
    if not works:
        click.echo("no unfinished work")


@resume.command()
@click.argument("stages", metavar="[STAGE]...", nargs=-1)
@click.option("--older-than", "days", type=click.FloatRange(0), default=0.0, metavar="DAYS", help="Only older work.")
@click.option("--unusable", is_flag=True, help="Only what a run now would not use: its params, inputs or code changed.")
@click.option("--dry-run", is_flag=True, help="Delete nothing, tell what would go.")
def prune(stages: tuple[str, ...], days: float, unusable: bool, dry_run: bool) -> None:
    """Delete it, of all stages or of those named; never what a running process holds."""
    works = all_work()
    unknown = set(stages) - {work.stage for work in works}
    if unknown:
        known = ", ".join(dict.fromkeys(work.stage for work in works)) or "none"
        raise InputError(f"no unfinished work of {', '.join(sorted(unknown))}; there is work of: {known}")
    freed = 0
    for work in works:
        if (
            (stages and work.stage not in stages)
            or work.age < days * 86400
            or (unusable and not why_unused(work.folder))
        ):
            continue
        gone = not work.running and (dry_run or delete(work))
        verb = ("would delete" if dry_run else "deleted") if gone else "kept, a process holds it:"
        freed += work.size if gone else 0
        click.echo(printable(f"{verb} {work.stage} {work.folder.name} ({show_size(work.size)})"))
    click.echo(f"{'would free' if dry_run else 'freed'} {freed} bytes")
