"""`align export`."""

from pathlib import Path

import click
import torch

from align.cli.export.folder import exported_files, listing, write_export
from align.cli.export.merge import find_model
from align.cli.export.model_card import LICENSE_ID
from align.core.errors import InputError, printable, quoted


@click.command()
@click.argument("name", metavar="MODEL")
@click.option("--to", type=click.Path(path_type=Path), metavar="DIR", required=True, help="The folder to write.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Type of the weights, which are merged in float32 and rounded once. Default: that of the base.",
)
@click.option("--base", type=click.Path(path_type=Path), metavar="DIR", help="The adapter's base. Default: beside it.")
@click.option("--license", "license_id", metavar="ID", help="Such as mit. Default: unknown, except for SmolLM2.")
def export(name: str, to: Path, dtype: str | None, base: Path | None, license_id: str | None) -> None:
    """Write a merged model with tokenizer, chat template and card, for transformers, vLLM and others.

    MODEL is a model of the pipeline (m2, ppo, reward, base) or the path of a model directory. A reward model becomes a
    sequence classifier; add `score_bias` from its config.json to the logit to get the pipeline's score.

    \b
      align export m2 --to out/m2 --dtype bfloat16
    """
    if license_id is not None and not LICENSE_ID.fullmatch(license_id):
        raise InputError(f"--license: expected an identifier such as mit or apache-2.0, got {quoted(license_id)}")
    parts = find_model(name, base)
    write_export(parts, to, getattr(torch, dtype) if dtype is not None else None, license_id)
    click.echo(listing(f"{to}: {name}", exported_files(to)))
    if parts.score_bias is not None:
        click.echo(f"the pipeline's score is the logit plus score_bias in config.json, {parts.score_bias:.4g}")
    serve = "" if parts.is_reward_model else f"transformers serve {to} (docs/SHARING.md), or "
    click.echo(printable(f"next: {serve}align push-to-hub {to} OWNER/NAME"))
