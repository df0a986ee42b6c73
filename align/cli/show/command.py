"""`align show`."""

import io
import json
import re
import sys
from pathlib import Path

import click
from rich.console import Console

from align.cli.page.rows import write_row_page
from align.cli.show.lineage import trace
from align.cli.show.lineage_report import report
from align.cli.show.panels import show_rows
from align.cli.show.selection import Condition, Selection, count_rows, find_data, read_data
from align.compare.data_sets import ARTIFACTS
from align.core.errors import InputError, printable

DEFAULT_ROWS = 10
PAGES = Path(".align/pages")


@click.command()
@click.argument("name", metavar="MODEL|FILE")
@click.option("--code", is_flag=True, help="List the code files of the stage, each with its hash.")
@click.option("--what", type=click.Choice(list(ARTIFACTS)), help="Rows of this data set of a model.")
@click.option(
    "--rows", "limit", type=click.IntRange(1), metavar="N", help="N rows. Default: 10; with --json and --html all."
)
@click.option(
    "--where",
    "conditions",
    metavar="CONDITION",
    multiple=True,
    help="Rows where it is true: 'score>=4', 'iteration=m1', 'prompt~garden' (contains). Repeat it: all are true.",
)
@click.option("--grep", metavar="TEXT", help="Rows with TEXT in any column; small and capital letters are the same.")
@click.option("--sort", metavar="COLUMN", help="Sort the rows by a column.")
@click.option("--desc", is_flag=True, help="With --sort: from the highest to the lowest.")
@click.option("--sample", metavar="SEED", type=int, help="Draw the rows at random; the same seed draws the same rows.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: the lineage as one object, rows as one a line.")
@click.option("--html", "as_html", is_flag=True, help="Write the rows as one HTML file, to browse without a network.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="With --html: the file to write.")
def show(
    name: str,
    code: bool,
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

    The stage, its params, code, git revision and versions, and under it all that it was made from, up to the seeds.
    Each file is compared with what lies there now.

    With an option that asks for rows, show rows instead, of any JSONL file or of a model's data sets:

    \b
      align show data/m1/preferences.jsonl --rows 5
      align show m1 --what scores --where 'score>=2.5' --sort score --desc
      align show m1 --html
    """
    filters = bool(limit or conditions or grep is not None or sort or sample is not None)
    if desc and sort is None:
        raise InputError("--desc needs --sort COLUMN")
    if output is not None and not as_html:
        raise InputError("-o needs --html")
    if as_html and as_json:
        raise InputError("--html and --json exclude each other")
    if not (filters or what or as_html):
        _show_lineage(name, code, as_json)
        return
    if code:
        raise InputError("--code belongs to the lineage, and rows are asked for; leave one of them out")
    data = find_data(name, what)
    if len(data) > 1 and (filters or not as_html):
        raise InputError(f"{name} has several data sets; name one with --what: {', '.join(data)}")
    if limit is None and (sample is not None or not (as_json or as_html)):
        limit = DEFAULT_ROWS
    selection = Selection([Condition.parse(text) for text in conditions], grep, sample, sort, desc, limit)
    if as_html:
        path = output or PAGES / f"{_file_name(name, what)}.html"
        for line in write_row_page(path, name, data, selection):
            click.echo(printable(line))
        return
    (path,) = data.values()
    everything = read_data(path)
    rows, found = selection.of(everything)
    if as_json:
        for row in rows:
            click.echo(printable(json.dumps(row, ensure_ascii=False)))
        return
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal of another encoding gets escapes for what it has not
        sys.stdout.reconfigure(errors="backslashreplace")
    console = Console(file=sys.stdout, markup=False, emoji=False, highlight=False)
    show_rows(console, rows)
    console.print(printable(count_rows(path, len(rows), found, len(everything))), style="dim", soft_wrap=True)


def _file_name(name: str, what: str | None) -> str:
    return re.sub(r"[^\w.]+", "-", f"{name} {what or ''}").strip("-.")


def _show_lineage(name: str, code: bool, as_json: bool) -> None:
    lineage = trace(name)
    if as_json:
        click.echo(printable(json.dumps(lineage.as_dict(), ensure_ascii=False)))
    else:
        for line in report(lineage, code):
            click.echo(printable(line))
