"""`align push-to-hub`."""

from pathlib import Path
from tempfile import TemporaryDirectory

import click

from align.cli.export.hub import check_destination, files_to_push, push
from align.cli.export.merge import find_model, is_exported, load_merged, quiet, write_export
from align.cli.export.model_card import model_card_text
from align.cli.project.units import show_size
from align.core.errors import printable


@click.command()
@click.argument("name", metavar="MODEL|DIR")
@click.argument("repo_id", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Make the repository a private one.")
@click.option("--revision", metavar="BRANCH", help="Push to this branch. Default: main.")
@click.option("--dry-run", is_flag=True, help="Send nothing, tell what would go.")
def push_to_hub(name: str, repo_id: str, private: bool, revision: str | None, dry_run: bool) -> None:
    """Push a model to the Hugging Face hub: a folder that `align export` wrote, or a model, exported on the way.

    The token is that of `hf auth login`, or HF_TOKEN in the environment.

    \b
      align push-to-hub out/m2 OWNER/NAME --private
    """
    check_destination(repo_id, revision)
    if is_exported(Path(name)):
        _push(Path(name), name, repo_id, private, revision, dry_run)
        return
    quiet()
    with TemporaryDirectory() as scratch:
        parts = find_model(name)
        model = load_merged(parts)
        folder = Path(scratch) / parts.name
        write_export(model, parts, folder, model_card_text(parts, model.dtype), "5GB")
        del model
        _push(folder, name, repo_id, private, revision, dry_run)


def _push(folder: Path, name: str, repo_id: str, private: bool, revision: str | None, dry_run: bool) -> None:
    files, left = files_to_push(folder)
    size = sum(file.stat().st_size for file in files)
    to = f"{repo_id}, branch {revision or 'main'}{', private' if private else ''}"
    click.echo(printable(f"{name} -> {to}: {len(files)} files, {show_size(size)}"))
    for file in files:
        click.echo(printable(f"  {file.name}  {show_size(file.stat().st_size)}"))
    if left:
        click.echo(printable(f"  left out, as no export writes them: {', '.join(left)}"))
    if dry_run:
        click.echo("nothing was sent (--dry-run)")
        return
    message = f"{folder.name}, from align export"
    click.echo(printable(push(folder, repo_id, private=private, revision=revision, message=message)))
