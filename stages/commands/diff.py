"""`align diff`."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from stages.align.artifacts import ARTIFACTS
from stages.lib.diff import Diff, JsonRow, diff_rows
from stages.lib.errors import InputError, printable, quoted
from stages.lib.records import read_objects


@click.command()
@click.argument("a")
@click.argument("b")
@click.option("--what", type=click.Choice(list(ARTIFACTS)), help="One data set; all that both sides have, by default.")
@click.option("-k", "--key", "keys", multiple=True, help="Key column of two files; repeat for several. Default: id.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Rows to show of each kind of change.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option("--exit-code", is_flag=True, help="Exit with 1 if the sides differ.")
def diff(a: str, b: str, what: str | None, keys: tuple[str, ...], limit: int, as_json: bool, exit_code: bool) -> None:
    """Compare the data sets of two models (`align diff m1 m2`) or two JSONL files row by row."""
    sources = _sources(a, b, what, keys)
    results: dict[str, Diff] = {}
    for name, (path_a, path_b, key) in sources.items():
        try:
            results[name] = diff_rows(_read(path_a), _read(path_b), key)
        except ValueError as error:
            raise InputError(f"{path_a}, {path_b}: {error}") from None
    if as_json:
        text = json.dumps({name: _as_dict(result, limit) for name, result in results.items()}, ensure_ascii=False)
        click.echo(printable(text))
    else:
        for name, result in results.items():
            click.echo("\n".join(map(printable, _table(name, result, a, b, limit))))
    if exit_code and not all(result.same for result in results.values()):
        raise SystemExit(1)


def _sources(a: str, b: str, what: str | None, keys: tuple[str, ...]) -> dict[str, tuple[Path, Path, Sequence[str]]]:
    if os.path.isfile(a) or os.path.isfile(b):
        return {Path(b).name: (Path(a), Path(b), keys or ("id",))}
    found: dict[str, tuple[Path, Path, Sequence[str]]] = {}
    for name, (pattern, key) in ARTIFACTS.items():
        paths = Path(pattern.format(a)), Path(pattern.format(b))
        if name == what or (what is None and all(map(os.path.isfile, paths))):
            found[name] = (*paths, keys or key)
    if not found:
        raise InputError(
            f"nothing to compare: {quoted(a)} and {quoted(b)} are no files, and no data set of both is here; "
            "run `dvc repro`"
        )
    return found


def _read(path: Path) -> list[JsonRow]:
    return [row for _, row in read_objects(path)]


def _as_dict(result: Diff, limit: int) -> dict[str, Any]:
    value = {**vars(result), "same": result.same, "numbers": {name: vars(n) for name, n in result.numbers.items()}}
    for side in ("added", "removed", "changed"):
        rows = value[side]
        value[side] = {"count": len(rows), "rows": rows[:limit]}
    return value


def _table(name: str, result: Diff, a: str, b: str, limit: int) -> list[str]:
    lines = [
        f"{name}: {result.rows_a} -> {result.rows_b} rows; {len(result.added)} added, {len(result.removed)} removed, "
        f"{len(result.changed)} changed, {result.unchanged} unchanged"
    ]
    for sign, columns in (("+", result.columns_added), ("-", result.columns_removed)):
        lines += [f"  {sign} column {column}" for column in columns]
    if result.changed_columns:
        lines.append("  changed columns: " + ", ".join(f"{column} {n}" for column, n in result.changed_columns.items()))
    for column, number in result.numbers.items():
        means = " -> ".join("-" if mean is None else f"{mean:.3f}" for mean in (number.mean_a, number.mean_b))
        text = f"  {column:<16} mean {means}"
        if number.higher or number.lower or number.equal:
            text += f"   ({b} higher in {number.higher}, lower in {number.lower}, equal in {number.equal})"
        lines.append(text)
    for row in result.added[:limit]:
        lines.append("  + " + _show(row))
    for row in result.removed[:limit]:
        lines.append("  - " + _show(row))
    for old, new in result.changed[:limit]:
        lines += [f"  {a}: {_show(old)}", f"  {b}: {_show(new)}"]
    return lines


def _show(row: JsonRow) -> str:
    text = json.dumps(row, ensure_ascii=False)
    return text if len(text) <= 400 else text[:400] + "..."
