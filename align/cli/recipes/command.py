"""`align recipe`."""

import click

from align.cli.project.settings import validate_params
from align.cli.recipes.recipes import merged, recipes, render, unsaved
from align.cli.recipes.recipes import recipe as find
from align.core.errors import InputError, printable
from align.core.files import write_text
from align.core.params import PARAMS_FILE, Params


@click.group()
def recipe() -> None:
    """List named settings (recipes/NAME.yaml), or merge one into params.yaml."""


@recipe.command("list")
def list_recipes() -> None:
    """List the recipes, with the hardware that each needs."""
    for name, one in recipes().items():
        click.echo(printable(f"{name}: {one.summary}"))
        click.echo(printable(f"    {one.hardware}"))


@recipe.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Overwrite uncommitted edits of params.yaml, or while DVC is running.")
def use(name: str, force: bool) -> None:
    """Write params.yaml: the defaults with recipe NAME merged in.

    The defaults are the last committed params.yaml that no recipe has changed.
    `git restore params.yaml` takes it back.
    """
    one = find(name)
    if not force and (reason := unsaved()):
        raise InputError(f"{PARAMS_FILE}: {reason}, or add --force")
    validate_params(Params(merged(name), one.path))
    write_text(PARAMS_FILE, render(one))
    click.echo(printable(f"{PARAMS_FILE} has recipe {name} now; `git diff {PARAMS_FILE}` shows the changes"))
    click.echo(printable(f"next: {one.command}"))
