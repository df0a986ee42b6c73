"""`align show`."""

import json

import click

from stages.align.lineage import trace
from stages.align.lineage_report import report
from stages.lib.errors import printable


@click.command()
@click.argument("name", metavar="MODEL|FILE")
@click.option("--code", is_flag=True, help="List the code files of the stage, each with its hash.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(name: str, code: bool, as_json: bool) -> None:
    """Show what made a model (`align show m1`) or a file of the pipeline (`align show data/m1/preferences.jsonl`).

    The stage, its params, code, git revision and versions, and under it all that it was made from, up to the seeds.
    Each file is compared with what lies there now.
    """
    lineage = trace(name)
    if as_json:
        click.echo(printable(json.dumps(lineage.as_dict(), ensure_ascii=False)))
    else:
        for line in report(lineage, code):
            click.echo(printable(line))
