"""`align estimate`."""

import json
from pathlib import Path

import click
from rich.console import Console

from align.cli.estimate.estimate import estimate as estimate_run
from align.cli.estimate.estimate import remarks, table
from align.cli.estimate.machines import DEVICES
from align.cli.estimate.settings import Values
from align.cli.estimate.targets import targets_of
from align.cli.recipes.recipes import Recipe
from align.core.errors import printable
from align.core.params import PARAMS_FILE

WIDTH = 120  # where the output is no terminal


@click.command()
@click.argument("targets", nargs=-1)
@click.option("--device", type=click.Choice(DEVICES, case_sensitive=False), default="auto", show_default=True)
@click.option("--params", type=click.Path(path_type=Path), default=PARAMS_FILE, show_default=True, help="Or a recipe.")
@click.option("--set", "changes", metavar="KEY=VALUE", multiple=True, help="Another value, such as ppo.num_updates=20.")
@click.option("--config", type=click.Path(path_type=Path), help="The base's config.json, where it is not here.")
@click.option("--fresh", is_flag=True, help="Count the raw data alone, as before a first run.")
@click.option("--calibrate", is_flag=True, help="Measure this machine's CPU again (a minute or two).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: seconds, bytes, FLOPs.")
def estimate(
    targets: tuple[str, ...],
    device: str,
    params: Path,
    changes: tuple[str, ...],
    config: Path | None,
    fresh: bool,
    calibrate: bool,
    as_json: bool,
) -> None:
    """Tell before a run what each stage will take: rows, tokens, FLOPs, memory, disk and time.

    TARGETS are stages, as for `dvc repro`: all that they need is counted. Without any they are those of the command in
    the file's first lines (`# Run: dvc repro ...`), or the whole pipeline.

    `cpu` is this machine, measured once and kept in .align/; a GPU is computed from its data sheet.
    """
    device = "cpu" if calibrate and device == "auto" else device
    found = estimate_run(
        Values.read(params, changes),
        Path(),
        device,
        targets or targets_of(Recipe.read(params).command),
        config=config,
        fresh=fresh,
        calibrate=calibrate,
        say=lambda text: click.echo(text, err=True),
    )
    if as_json:
        click.echo(printable(json.dumps(found.as_dict(), ensure_ascii=False)))
        return
    console = Console(highlight=False, markup=False)
    console = console if console.is_terminal else Console(highlight=False, markup=False, width=WIDTH)
    console.print(table(found))
    for line in remarks(found):
        click.echo(printable(line))
