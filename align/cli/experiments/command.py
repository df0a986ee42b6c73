"""`align experiments`."""

import json
import shutil
from datetime import datetime

import click

from align.cli.experiments.table import experiments as find
from align.cli.experiments.table import table
from align.core.errors import printable


@click.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--all-commits", "-A", is_flag=True, help="Those of all commits; else of HEAD alone.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list, with all metrics.")
def experiments(names: tuple[str, ...], all_commits: bool, as_json: bool) -> None:
    """List the experiments (or those named), each with what differs from its commit: params and headline metrics.

    Under a metric is its change. Two of them in full: `dvc params diff A B`, `dvc metrics diff A B`.
    """
    found = find(names, all_commits)
    if as_json:
        click.echo(printable(json.dumps([experiment.as_dict() for experiment in found], ensure_ascii=False)))
    elif found:
        click.echo(table(found, datetime.now(), shutil.get_terminal_size().columns))
    else:
        where = "" if all_commits else " that starts from HEAD (-A: from any commit)"
        click.echo(f"no experiment{where}; make one with `dvc exp run -S ppo.kl_coef=0.02`")
