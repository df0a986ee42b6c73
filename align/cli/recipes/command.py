"""`align recipe`."""

import shutil
import sys

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from align.cli.project.git import git
from align.cli.project.settings import validate_params
from align.cli.recipes.recipes import Change, changes, in_the_way, recipes, stages_reading, take
from align.cli.recipes.recipes import recipe as find
from align.core.errors import InputError, printable
from align.core.files import read_bytes
from align.core.params import PARAMS_FILE, Params


@click.group()
def recipe() -> None:
    """Settings of named runs (recipes/NAME.yaml, each a whole params.yaml): list, compare, take one."""


@recipe.command("list")
def list_recipes() -> None:
    """List the recipes; * marks the one that params.yaml is."""
    here = read_bytes(PARAMS_FILE) if PARAMS_FILE.is_file() else b""
    for one in recipes():
        mark = "*" if read_bytes(one.path) == here else " "
        click.echo(printable(f"{mark} {one.name}: {one.summary}"))
        click.echo(printable(f"    {one.hardware}"))


@recipe.command()
@click.argument("name")
@click.argument("other", required=False)
@click.option("--exit-code", is_flag=True, help="Exit with 0 if they are the same, 1 if not, 2 at an error.")
def diff(name: str, other: str | None, exit_code: bool) -> None:
    """Show what NAME changes in params.yaml, or what OTHER changes in NAME, key by key."""
    try:
        if other is None:
            found = changes(Params.read().values, Params.read(find(name).path).values)
        else:
            found = changes(Params.read(find(name).path).values, Params.read(find(other).path).values)
    except InputError as error:
        error.show()
        raise SystemExit(2) from None
    _show(found)
    if exit_code and found:
        raise SystemExit(1)


@recipe.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Even if uncommitted edits of params.yaml are lost, or DVC is running.")
@click.option("--dry-run", is_flag=True, help="Write nothing, tell what would change.")
def use(name: str, force: bool, dry_run: bool) -> None:
    """Write NAME as params.yaml, comments and all, once it is checked; tell what changes and which stages read it."""
    one = find(name)
    params = Params.read(one.path)
    validate_params(params)
    reason = in_the_way()
    if reason and not force and not dry_run:
        raise InputError(f"{PARAMS_FILE}: {reason}, or add --force")
    try:
        found = changes(Params.read().values, params.values) if PARAMS_FILE.exists() else None
    except InputError as error:
        found = None
        click.echo(f"what changes cannot be told: {error.message}", err=True)
    if found is not None:
        _show(found)
        sections = dict.fromkeys(change.section for change in found)
        if stages := stages_reading(sections):
            click.echo(f"stages with other params (those that come after them run again, too): {', '.join(stages)}")
    if dry_run:
        click.echo(f"{PARAMS_FILE} is as it was (--dry-run)" + (f"; without --force: {reason}" if reason else ""))
        return
    take(one)
    if git("rev-parse", "-q", "--verify", "HEAD") and git("symbolic-ref", "-q", "HEAD") is None:
        click.echo("HEAD is detached: a commit made here is on no branch (`align doctor`)", err=True)
    click.echo(printable(f"{PARAMS_FILE} is {one.name} now; next: {one.command}"))


def _show(found: list[Change]) -> None:
    if not found:
        click.echo("no setting differs")
    elif not in_terminal():
        for change in found:
            click.echo(printable(f"{change.name}: {change.old} -> {change.new}"))
    else:
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for title in ("", "from", "to"):
            table.add_column(title, overflow="fold")
        for before, change in zip([None, *found], found, strict=False):
            if before and before.section != change.section:
                table.add_section()
            cells = ((change.name, ""), (change.old, "red"), (change.new, "green"))
            table.add_row(*(Text(printable(cell), style) for cell, style in cells))
        Console(width=shutil.get_terminal_size().columns).print(table)


def in_terminal() -> bool:
    """Tell whether a person reads the output."""
    return sys.stdout.isatty()
