"""Fetch a source, an entry of `sources` in params.yaml -> data/sources/NAME.jsonl, rows unchanged.

NAME.json has their count and the revision: the hub's commit, or the hash of a file or folder.
Run with `python -m stages.fetch_data NAME`.
"""

import logging
import os
from pathlib import Path

import click
import jsonlines

from align.core.files import replacing, write_json
from align.core.jsonl import dumps
from align.core.params import Params
from align.data.sources import SourceSettings, find, read

DATA = Path("data")


@click.command(help=__doc__)
@click.argument("name")
def main(name: str) -> None:
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    for library in ("datasets", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.CRITICAL)  # errors are raised anyway
    params = Params.read()
    source = find(name, params.source(name, SourceSettings))
    columns: dict[str, None] = {}
    rows = 0
    out = DATA / "sources" / f"{name}.jsonl"
    with (
        replacing(out) as temporary,
        temporary.open("w", encoding="utf-8") as stream,
        jsonlines.Writer(stream, dumps=dumps) as writer,
    ):
        for row in read(source):
            writer.write(row)
            columns |= dict.fromkeys(row)
            rows += 1
    write_json(out.with_suffix(".json"), {"rows": rows, "columns": list(columns), "revision": source.fingerprint})
    click.echo(f"fetch_data: {rows} rows of {source.settings.dataset} at {source.fingerprint} -> {out}")


if __name__ == "__main__":
    main()
