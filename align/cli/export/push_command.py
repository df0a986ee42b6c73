"""`align push-to-hub`."""

from pathlib import Path
from tempfile import TemporaryDirectory

import click

from align.cli.export.folder import exported_files, is_exported, listing, write_export
from align.cli.export.hub import push
from align.cli.export.merge import find_model
from align.cli.export.model_card import HUB_ID
from align.core.errors import InputError, printable, quoted


@click.command()
@click.argument("name", metavar="MODEL|DIR")
@click.argument("repo_id", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Create a private repository.")
@click.option("--dry-run", is_flag=True, help="List what would be sent, and send nothing.")
def push_to_hub(name: str, repo_id: str, private: bool, dry_run: bool) -> None:
    """Push a model to the Hugging Face hub: a folder written by `align export`, or a model, which is exported first.

    The token is that of `hf auth login`, or HF_TOKEN in the environment.

    \b
      align push-to-hub out/m2 OWNER/NAME --private
    """
    if not HUB_ID.fullmatch(repo_id):
        raise InputError(f"{quoted(repo_id)}: not a valid repository id; give OWNER/NAME")
    with TemporaryDirectory() as scratch:
        folder = Path(name)
        if not is_exported(folder):
            parts = find_model(name)
            folder = Path(scratch) / parts.name
            write_export(parts, folder)
        files = exported_files(folder)
        click.echo(listing(f"{name} -> {repo_id}{' (private)' if private else ''}", files))
        if dry_run:
            click.echo("nothing was sent (--dry-run)")
        else:
            click.echo(printable(push(folder, files, repo_id, private)))
