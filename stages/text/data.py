"""Check labelled texts, the files of `text.train` and `text.test` -> data/text/{train,test}.jsonl.

No text is in both. Run with `python -m stages.text.data`.
"""

from collections import Counter
from pathlib import Path

import click

from align.core.errors import InputError, quoted
from align.core.files import write_json
from align.core.params import Params
from align.core.rows import write_rows
from align.text.labelled import labels_of, read_splits
from align.text.settings import TextSettings

DATA = Path("data/text")


@click.command(help=__doc__)
def main() -> None:
    settings = Params.read().section("text", TextSettings)
    for key, path in (("train", settings.train), ("test", settings.test)):
        if not path.endswith(".jsonl"):
            raise InputError(
                f"params.yaml: text.{key}: {quoted(path)} is no .jsonl file; add other files to section sources, and "
                "give the resulting data/sources/NAME.jsonl here"
            )
    train, test, dropped = read_splits(Path(settings.train), Path(settings.test))
    write_rows(DATA / "train.jsonl", train)
    write_rows(DATA / "test.jsonl", test)
    counts = {
        f"{name}_{label}": Counter(row.label_text for row in rows)[label]
        for name, rows in (("train", train), ("test", test))
        for label in labels_of(train)
    }
    write_json(DATA / "data.json", {"train": len(train), "test": len(test), "labels": counts, "dropped": dropped})
    reasons = "".join(f", {n} dropped ({reason})" for reason, n in dropped.items())
    click.echo(f"text_data: {len(train)} training rows, {len(test)} test rows{reasons}")


if __name__ == "__main__":
    main()
