"""`align doctor`."""

import json

import click

from align.cli.doctor.examine import examine
from align.core.errors import printable


@click.command()
@click.option("--deep", is_flag=True, help="Hash every object in DVC's cache: seconds a gigabyte.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
def doctor(deep: bool, as_json: bool) -> None:
    """Tell what would differ on this machine from the runs that are here, and what would stop a run.

    One line a check: ok, differs or problem, and how to mend it. The exit status is 1 if there is a problem.
    """
    findings = []
    for finding in examine(deep):
        findings.append(finding)
        if not as_json:
            click.echo("\n".join(map(printable, finding.lines())))
    if as_json:
        click.echo(printable(json.dumps([finding.as_dict() for finding in findings], ensure_ascii=False)))
    if any(finding.status == "problem" for finding in findings):
        raise SystemExit(1)
