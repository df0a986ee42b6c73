"""`align remote-check`."""

import json
import shlex
from collections.abc import Iterator
from dataclasses import asdict

import click

from align.cli.project.dvc import DvcFiles
from align.cli.project.units import show_size
from align.cli.remotes.check import BadObject, Report, check, repair
from align.cli.remotes.objects import DIR
from align.cli.remotes.remote import Remote
from align.core.errors import printable


@click.command("remote-check")
@click.argument("targets", nargs=-1)
@click.option("-r", "--remote", metavar="NAME", help="The remote; default: DVC's default remote.")
@click.option("--rev", "revisions", multiple=True, metavar="REV", help="Check the outs of this git revision instead.")
@click.option("--quick", is_flag=True, help="Compare sizes; hash only objects whose size is wrong or unknown.")
@click.option("--repair", "repairs", is_flag=True, help="Replace bad objects that the cache here has undamaged.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def remote_check(
    targets: tuple[str, ...], remote: str | None, revisions: tuple[str, ...], quick: bool, repairs: bool, as_json: bool
) -> None:
    """Hash every object on a DVC remote that the outs need, and compare the hash with the object's name.

    DVC itself asks only whether the name is there. TARGETS are as for `dvc push`: outs, files in them, stages. Prints a
    line per missing or damaged object, with how to fix it. Exits with 1 if one is left after --repair.
    """
    files = DvcFiles()
    opened = Remote(files.repo, remote)
    report = check(files, opened, targets, revisions, quick)
    if repairs:
        repair(opened, report)
    if as_json:
        click.echo(printable(json.dumps(asdict(report), ensure_ascii=False)))
    else:
        options = [part for revision in revisions for part in ("--rev", revision)]
        command = shlex.join(["align", "remote-check", "-r", report.remote, *options, "--repair", *targets])
        for line in _lines(report, command, quick):
            click.echo(printable(line))
    if len(report.repaired) < len(report.bad):
        raise SystemExit(1)


def _lines(report: Report, command: str, quick: bool) -> Iterator[str]:
    for one in report.bad:
        if one.oid in report.repaired:
            yield f"{'repaired':<10}{_names(one)}"
        else:
            yield f"{one.fault:<10}{_names(one)}: {one.what} ({one.url}); {_step(one, command)}"
    how = "sizes compared" if quick else f"{show_size(report.downloaded)} hashed"
    bad = f"{len(report.bad)} bad, {len(report.repaired)} repaired" if report.bad else "no problem"
    yield f"{report.remote} ({report.url}): {report.checked} objects, {how}: {bad}"
    if report.not_pushed:
        yield f"not checked: {', '.join(report.not_pushed)} (push: false in dvc.yaml)"


def _names(one: BadObject) -> str:
    names = ", ".join(one.paths[:3]) + (", ..." if len(one.paths) > 3 else "")
    return f"{names} (the folder's list of files)" if one.oid.endswith(DIR) else names


def _step(one: BadObject, command: str) -> str:
    if one.repairable:
        return f"the cache here has it undamaged, run `{command}`"
    step = f"the cache here does not have it undamaged: run `{command}` where another does"
    stages = [stage for stage in one.stages if not stage.endswith(".dvc")]
    return f"{step}, or first rebuild it with `dvc repro {' '.join(stages)}`" if stages else step
