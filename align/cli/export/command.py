"""`align export`."""

import re
from pathlib import Path

import click
import torch

from align.cli.export.merge import check_target, find_model, load_merged, quiet, write_export
from align.cli.export.model_card import LICENSE_ID, model_card_text
from align.cli.project.units import show_size
from align.core.errors import InputError, printable, quoted


@click.command()
@click.argument("name", metavar="MODEL")
@click.option("--to", type=click.Path(path_type=Path), metavar="DIR", required=True, help="The folder to write.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Of the weights; they are merged in float32 and rounded once. Default: as the base is stored.",
)
@click.option("--base", type=click.Path(path_type=Path), metavar="DIR", help="The adapter's base. Default: beside it.")
@click.option("--license", "license_id", metavar="ID", help="Such as mit. Default: the base's, where it names one.")
@click.option("--max-shard-size", default="5GB", show_default=True, metavar="SIZE", help="Of a file of weights.")
@click.option("--force", is_flag=True, help="Replace an earlier export in DIR.")
def export(
    name: str, to: Path, dtype: str | None, base: Path | None, license_id: str | None, max_shard_size: str, force: bool
) -> None:
    """Write a model as plain transformers, vLLM and others load it: merged, with tokenizer, chat template and card.

    MODEL is a model of the pipeline (m2, ppo, reward, base) or the path of a model directory. A reward model is written
    as one for sequence classification; the bias that centres its scores is `score_bias` in config.json.

    \b
      align export m2 --to out/m2 --dtype bfloat16
    """
    if license_id is not None and not LICENSE_ID.fullmatch(license_id):
        raise InputError(f"--license: expected an identifier such as mit or apache-2.0, got {quoted(license_id)}")
    if not re.fullmatch(r"[1-9]\d{0,5}(KB|MB|GB)", max_shard_size):
        raise InputError(f"--max-shard-size: expected a size such as 500MB or 5GB, got {quoted(max_shard_size)}")
    quiet()
    target = check_target(to, force)
    parts = find_model(name, base)
    model = load_merged(parts, getattr(torch, dtype) if dtype is not None else None)
    files = write_export(model, parts, target, model_card_text(parts, model.dtype, license_id), max_shard_size)
    size, count = sum(file.stat().st_size for file in files), sum(p.numel() for p in model.parameters())
    about = f"{count / 1e6:.4g}M parameters, {str(model.dtype).removeprefix('torch.')}, {len(files)} files"
    click.echo(printable(f"{to}: {name}, {about}, {show_size(size)}"))
    for file in files:
        click.echo(printable(f"  {file.name}  {show_size(file.stat().st_size)}"))
    if parts.score_bias is not None:
        click.echo(f"a score of the pipeline is the logit plus score_bias of config.json, {parts.score_bias:.4g}")
        click.echo(printable(f"next: align push-to-hub {to} OWNER/NAME"))
    else:
        click.echo(printable(f"next: transformers serve {to} (docs/SHARING.md), or align push-to-hub {to} OWNER/NAME"))
