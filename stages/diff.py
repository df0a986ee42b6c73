"""Compare a model's data with its parent's: data/<model>/, data/<parent>/ -> data/diff/<model>.{json,csv}.

For each data set of both, writes the numbers of rows, added, removed and changed rows, and the means of its numbers,
for `dvc metrics` and `dvc plots`; `align diff` shows the rows. Run with `python -m stages.diff m2 m1`.
"""

from pathlib import Path
from typing import Any

import click

from align.compare.changes import KINDS
from align.compare.data_sets import ARTIFACTS
from align.compare.join import Diff, compare
from align.core.errors import InputError
from align.core.files import REBUILD, write_csv, write_json

DATA = Path("data")


def measures(diff: Diff) -> dict[str, Any]:
    """Return a comparison for `dvc metrics`: `mean` is the model's, `change` the difference from its parent's."""
    means = {name: (number.a.mean, number.b.mean) for name, number in diff.numbers.items()}
    return {
        "rows": diff.rows_b,
        **{kind: getattr(diff, kind) for kind in KINDS},
        "mean": {name: new for name, (_, new) in means.items() if new is not None},
        "change": {name: new - old for name, (old, new) in means.items() if old is not None and new is not None},
    }


@click.command(help=__doc__)
@click.argument("model")
@click.argument("parent")
def main(model: str, parent: str) -> None:
    changes: dict[str, dict[str, Any]] = {}
    for name, (pattern, key) in ARTIFACTS.items():
        old, new = (DATA / Path(pattern.format(side)).relative_to("data") for side in (parent, model))
        if old.is_file() and new.is_file():  # m0 has no generated prompts
            # One thread, so that every run gives the same last bit of a mean.
            with compare(old, new, key, threads=1) as diff:
                changes[name] = measures(diff)
    if not changes:
        raise InputError(f"{DATA}: {model} and {parent} have no data set in common; {REBUILD}")
    write_json(DATA / "diff" / f"{model}.json", changes)
    rows = [{"change": f"{name}: {kind}", "rows": counts[kind]} for name, counts in changes.items() for kind in KINDS]
    write_csv(DATA / "diff" / f"{model}.csv", rows)
    click.echo(f"diff: {parent} -> {model}: {', '.join(changes)} -> {DATA / 'diff' / model}.json")


if __name__ == "__main__":
    main()
