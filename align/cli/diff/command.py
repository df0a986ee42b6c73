"""`align diff`."""

import math
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from align.cli.diff.output import FEW, Comparison
from align.cli.diff.sides import Side, Sources
from align.cli.page.page import write_page
from align.compare.changes import KINDS, Kind
from align.compare.data_sets import ARTIFACTS
from align.core.errors import InputError


@click.command()
@click.argument("a")
@click.argument("b")
@click.option("--what", type=click.Choice(list(ARTIFACTS)), help="Compare this data set. Default: all that both have.")
@click.option("-k", "--key", "keys", multiple=True, help="Key column; repeatable. Default: the data set's key.")
@click.option("--only", "kinds", type=click.Choice(KINDS), multiple=True, help="Only rows of this kind; repeatable.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    help=f"Rows of each kind. Default: all in jsonl and html, {FEW} in a table of one data set, otherwise none.",
)
@click.option("--format", "style", type=click.Choice(["table", "json", "jsonl", "html"]), default="table")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="With --format html: the file.")
@click.option("--tolerance", type=click.FloatRange(min=0), default=0.0, help="Largest difference of equal numbers.")
@click.option("--exit-code", is_flag=True, help="Exit with 0 if the sides are equal, 1 if not, 2 on an error.")
def diff(
    a: str,
    b: str,
    what: str | None,
    keys: tuple[str, ...],
    kinds: tuple[Kind, ...],
    limit: int | None,
    style: str,
    output: Path | None,
    tolerance: float,
    exit_code: bool,
) -> None:
    """Compare the data of two models, or two JSONL files, row by row.

    Each side is a model or a file, in the workspace or, after an @, at a git revision or in an experiment:

    \b
      align diff m1 m2                      what the second iteration did to the data
      align diff m1@main m1@exp-name        one iteration before and after
      align diff data/m1/ift.jsonl@HEAD~3 data/m1/ift.jsonl
    """
    if (style == "html") != (output is not None):
        raise click.UsageError("--format html and -o FILE belong together")
    if not math.isfinite(tolerance):
        raise click.UsageError(f"--tolerance: expected a number from 0, got {tolerance}")
    try:
        with TemporaryDirectory(prefix="align-") as folder:
            sources = Sources(Path(folder))
            comparison = Comparison(sources, Side.parse(a), Side.parse(b), what, keys, kinds or KINDS, limit, tolerance)
            if output is not None:
                write_page(output, f"{comparison.a.text} → {comparison.b.text}", "align diff", comparison.sections())
            else:
                for line in getattr(comparison, style)():
                    click.echo(line)
    except InputError as error:
        error.show()
        raise SystemExit(2) from None
    if comparison.failed:
        raise SystemExit(2)
    if exit_code and not comparison.same:
        raise SystemExit(1)
