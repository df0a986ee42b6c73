"""The `align` command: look into what the pipeline made, and make the loop longer."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from stages.align.doctor import examine
from stages.align.lineage import trace
from stages.align.lineage_report import report
from stages.align.terminal import show_size
from stages.align.unfinished import all_work, delete, unfinished_lines, why_unused
from stages.lib.diff import Diff, JsonRow, diff_rows
from stages.lib.errors import InputError, printable, quoted
from stages.lib.iterate import WIN_RATE, Goal
from stages.lib.iterate import iterate as add_iterations
from stages.lib.records import read_objects

# What one model has: name -> (file, key columns, the column to show of a row).
ARTIFACTS = {
    "prompts": ("data/{}/prompts.jsonl", ("id",)),
    "responses": ("data/{}/responses.jsonl", ("id", "sample")),
    "scores": ("data/{}/scores.jsonl", ("id", "sample")),
    "preferences": ("data/{}/preferences.jsonl", ("id",)),
    "ift": ("data/{}/ift.jsonl", ("id",)),
    "answers": ("data/eval/{}.jsonl", ("id", "turn")),
}


class PrintableErrors(click.Group):
    """A group whose errors, which quote files and arguments, are printable too."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except InputError as error:
            raise type(error)(printable(error.message)) from None


@click.group(cls=PrintableErrors, help=__doc__)
def main() -> None:
    pass


@main.command()
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


@main.command()
@click.option("--until", "metric", metavar="METRIC", default=WIN_RATE, show_default=True, help="Column of models.csv.")
@click.option("--max", "limit", metavar="N", type=int, required=True, help="The most iterations to add.")
@click.option("--min-delta", default=0.0, show_default=True, help="How much better than the best so far is better.")
@click.option("--lower-is-better", is_flag=True, help="The metric is to fall.")
def iterate(metric: str, limit: int, min_delta: float, lower_is_better: bool) -> None:
    """Add iterations to the self-rewarding loop one at a time, for as long as METRIC gets better.

    Each is written into params.yaml and reproduced. One that is no better stays; one that fails is taken out again.
    """
    add_iterations(Goal(metric, min_delta, lower_is_better), limit, click.echo)


@main.command()
@click.argument("name", metavar="MODEL|FILE")
@click.option("--code", is_flag=True, help="List the code files of the stage, each with its hash.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(name: str, code: bool, as_json: bool) -> None:
    """Show what made a model (`align show m1`) or a file of the pipeline (`align show data/m1/preferences.jsonl`).

    The stage, its params, code, git revision and versions, and under it all that it was made from, up to the seeds.
    Each file is compared with what lies there now.
    """
    lineage = trace(name)
    if as_json:
        click.echo(printable(json.dumps(lineage.as_dict(), ensure_ascii=False)))
    else:
        for line in report(lineage, code):
            click.echo(printable(line))


@main.command()
@click.option("--deep", is_flag=True, help="Hash every object in DVC's cache: seconds a gigabyte.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
def doctor(deep: bool, as_json: bool) -> None:
    """Tell what would differ on this machine from the runs that are here, and what would stop a run.

    One line a check: ok, differs or problem, and how to mend it. The exit status is 1 if there is a problem.
    """
    findings = []
    for finding in examine(deep):
        findings.append(finding)
        if not as_json:
            click.echo("\n".join(map(printable, finding.lines())))
    if as_json:
        click.echo(printable(json.dumps([finding.as_dict() for finding in findings], ensure_ascii=False)))
    if any(finding.status == "problem" for finding in findings):
        raise SystemExit(1)


@main.group()
def resume() -> None:
    """Unfinished work of stages that were killed, in .align/resume: a stage that is run again goes on from it."""


@resume.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
def list_work(as_json: bool) -> None:
    """List it: stage, identity, size, age, finished rows, the process that is at it, and whether it would be used."""
    works = [(work, why_unused(work.folder)) for work in all_work()]
    if as_json:
        values = [work.as_dict() | {"unused_because": reasons} for work, reasons in works]
        click.echo(printable(json.dumps(values, ensure_ascii=False)))
        return
    for work, reasons in works:
        for line in unfinished_lines(work, reasons):
            click.echo(printable(line))
    if not works:
        click.echo("no unfinished work")


@resume.command()
@click.argument("stages", metavar="[STAGE]...", nargs=-1)
@click.option("--older-than", "days", type=click.FloatRange(0), default=0.0, metavar="DAYS", help="Only older work.")
@click.option("--unusable", is_flag=True, help="Only what a run now would not use: its params, inputs or code changed.")
@click.option("--dry-run", is_flag=True, help="Delete nothing, tell what would go.")
def prune(stages: tuple[str, ...], days: float, unusable: bool, dry_run: bool) -> None:
    """Delete it, of all stages or of those named; never what a running process holds."""
    works = all_work()
    unknown = set(stages) - {work.stage for work in works}
    if unknown:
        known = ", ".join(dict.fromkeys(work.stage for work in works)) or "none"
        raise InputError(f"no unfinished work of {', '.join(sorted(unknown))}; there is work of: {known}")
    freed = 0
    for work in works:
        if (
            (stages and work.stage not in stages)
            or work.age < days * 86400
            or (unusable and not why_unused(work.folder))
        ):
            continue
        gone = not work.running and (dry_run or delete(work))
        verb = ("would delete" if dry_run else "deleted") if gone else "kept, a process holds it:"
        freed += work.size if gone else 0
        click.echo(printable(f"{verb} {work.stage} {work.folder.name} ({show_size(work.size)})"))
    click.echo(f"{'would free' if dry_run else 'freed'} {freed} bytes")


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


if __name__ == "__main__":
    main()
