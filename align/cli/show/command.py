"""`align show`."""

import io
import json
import re
import sys
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console

from align.cli.show.lineage import trace
from align.cli.show.lineage_report import report
from align.cli.show.panels import show_rows
from align.cli.show.row_page import write_row_page
from align.cli.show.selection import Condition, Selection, find_data
from align.compare.data_sets import ARTIFACTS
from align.core.errors import InputError, printable

DEFAULT_ROWS = 10
PAGES = Path(".align/pages")


@click.command()
@click.argument("name", metavar="MODEL|FILE")
@click.option("--what", type=click.Choice(list(ARTIFACTS)), help="Show rows of this data set of a model.")
@click.option("--rows", "limit", type=click.IntRange(1), metavar="N", help="Show N rows (default 10; JSON, HTML: all).")
@click.option(
    "--where",
    "conditions",
    metavar="CONDITION",
    multiple=True,
    help="Only rows that meet it: 'score>=4', 'iteration=m1', 'prompt~garden' (contains). Repeat to combine.",
)
@click.option("--grep", metavar="TEXT", help="Only rows with TEXT in any column, in any case.")
@click.option("--sort", metavar="COLUMN", help="Sort by this column.")
@click.option("--desc", is_flag=True, help="With --sort: highest first.")
@click.option("--sample", metavar="SEED", type=int, help="Draw the rows at random with this seed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: the lineage as one object, rows one per line.")
@click.option("--html", "as_html", is_flag=True, help="Write the rows to one HTML file that works offline.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="With --html: the file to write.")
def show(
    name: str,
    what: str | None,
    limit: int | None,
    conditions: tuple[str, ...],
    grep: str | None,
    sort: str | None,
    desc: bool,
    sample: int | None,
    as_json: bool,
    as_html: bool,
    output: Path | None,
) -> None:
    """Show what made a model (`align show m1`) or a file of the pipeline (`align show data/m1/preferences.jsonl`).

    Prints the stage, its params, code, git revision and versions, then the tree of its inputs back to the seed data.
    Each file is compared with the workspace.

    With an option for rows, show rows of a JSONL file or of a model's data sets instead:

    \b
      align show data/m1/preferences.jsonl --rows 5
      align show m1 --what scores --where 'score>=2.5' --sort score --desc
      align show m1 --html
    """
    if desc and sort is None:
        raise InputError("--desc needs --sort COLUMN")
    if output is not None and not as_html:
        raise InputError("-o needs --html")
    if as_html and as_json:
        raise InputError("--html and --json exclude each other")
    filters = bool(limit or conditions or grep is not None or sort or sample is not None)
    if not (filters or what or as_html):
        lineage = trace(name)
        for line in [json.dumps(asdict(lineage), ensure_ascii=False)] if as_json else report(lineage):
            click.echo(printable(line))
        return
    data = find_data(name, what)
    if len(data) > 1 and (filters or not as_html):
        raise InputError(f"{name} has several data sets; name one with --what: {', '.join(data)}")
    if limit is None and (sample is not None or not (as_json or as_html)):
        limit = DEFAULT_ROWS
    selection = Selection([Condition.parse(text) for text in conditions], grep, sample, sort, desc, limit)
    if as_html:
        path = output or PAGES / (re.sub(r"[^\w.]+", "-", f"{name} {what or ''}").strip("-.") + ".html")
        for line in write_row_page(path, name, data, selection):
            click.echo(printable(line))
        return
    (path,) = data.values()
    rows, count = selection.read(path)
    if as_json:
        for row in rows:
            click.echo(printable(json.dumps(row, ensure_ascii=False)))
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for terminals that are not UTF-8
    console = Console(file=sys.stdout, markup=False, emoji=False, highlight=False)
    show_rows(console, rows)
    console.print(printable(count), style="dim", soft_wrap=True)
