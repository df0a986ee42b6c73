"""`align remote-check`."""

import json

import click

from align.cli.project.dvc import DvcFiles
from align.cli.remotes.check import RemoteCheck, Scope
from align.cli.remotes.credentials import check_credentials
from align.cli.remotes.report import bad_lines, repair_lines, summary_lines
from align.core.errors import printable


@click.command("remote-check")
@click.argument("targets", nargs=-1)
@click.option("-r", "--remote", metavar="NAME", help="The remote; otherwise the default one.")
@click.option("--rev", "revisions", multiple=True, metavar="REV", help="Check what a git revision needs, not this one.")
@click.option(
    "--all", "everything", is_flag=True, help="Check all that is on the remote too, of old revisions as well."
)
@click.option("--quick", is_flag=True, help="Compare sizes; hash only what has the wrong one.")
@click.option("--repair", is_flag=True, help="Replace what is bad and lies whole in the cache here.")
@click.option("-j", "--jobs", type=click.IntRange(1), default=4, show_default=True, help="Objects at a time.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def remote_check(
    targets: tuple[str, ...],
    remote: str | None,
    revisions: tuple[str, ...],
    everything: bool,
    quick: bool,
    repair: bool,
    jobs: int,
    as_json: bool,
) -> None:
    """Hash what a DVC remote holds and compare it with its name: DVC itself only asks whether the name is there.

    Looks at the objects of all outs in dvc.lock and .dvc files, or of TARGETS (paths, stages). One line for each that
    is missing, truncated or corrupt, with what mends it. The exit status is 1 if one is bad, after a repair if one
    still is.
    """
    if everything and quick:
        raise click.UsageError("--all and --quick: nothing here tells the sizes of old revisions' objects")
    for finding in check_credentials():
        if finding.status == "problem":
            click.echo("\n".join(map(printable, finding.lines())), err=True)
    check = RemoteCheck(DvcFiles(), remote)
    report = check.run(Scope(targets, revisions, everything, quick, jobs))
    left = check.repair(report.bad) if repair else report.bad
    if as_json:
        value = report.as_dict() | {"repaired": [one.oid for one in report.bad if one not in left]}
        click.echo(printable(json.dumps(value, ensure_ascii=False)))
    else:
        repaired = repair_lines(report.bad, left) if repair else ()
        for line in (*bad_lines(report), *summary_lines(report, quick), *repaired):
            click.echo(printable(line))
    if left or report.unknown_folders:
        raise SystemExit(1)
