"""What `align remote-check` says, line by line."""

from collections.abc import Iterator, Sequence

from align.cli.project.units import show_size
from align.cli.remotes.check import BadObject, Report
from align.cli.remotes.needs import DIR

MAX_PATHS = 3


def bad_lines(report: Report) -> Iterator[str]:
    """Yield a line for each bad object: what is wrong, where, and what mends it."""
    for one in report.bad:
        yield f"{one.fault:<10}{_names(one)}: {one.what} ({one.url}); {_mend(one, report)}"
    for path in report.unknown_folders:
        yield f"{'unknown':<10}{path}: its files, since neither the cache here nor the remote has a good list of them"


def summary_lines(report: Report, quick: bool) -> Iterator[str]:
    """Yield what was looked at, and what was not."""
    bad = f"{len(report.bad)} bad" if report.bad else "all right"
    how = "their sizes" if quick else f"{show_size(report.downloaded)} hashed"
    yield f"{report.remote} ({report.url}): {report.checked} objects, {how}: {bad}"
    if report.not_pushed:
        yield f"not looked for: {', '.join(report.not_pushed)} (push: false in dvc.yaml)"
    if report.leftovers:
        count = len(report.leftovers)
        yield f"{count} files that are no objects, such as a kill leaves; with no push under way they can be deleted:"
        yield from (f"  {url}" for url in report.leftovers)


def repair_lines(bad: Sequence[BadObject], left: Sequence[BadObject]) -> Iterator[str]:
    """Yield what a repair has done."""
    for one in bad:
        yield f"{'still bad' if one in left else 'repaired':<10}{_names(one)}"


def _names(one: BadObject) -> str:
    if not one.paths:
        return f"{one.oid} (of no out asked for)"
    more = len(one.paths) - MAX_PATHS
    names = ", ".join(one.paths[:MAX_PATHS]) + (f" and {more} more" if more > 0 else "")
    return f"{names} (the folder's list of files)" if one.oid.endswith(DIR) else names


def _mend(one: BadObject, report: Report) -> str:
    if one.repairable:
        return f"the cache here has it whole, run `{report.repair}`"
    elsewhere = f"the cache here does not have it whole: run `{report.repair}` where another does"
    stages = [stage for stage in one.stages if not stage.endswith(".dvc")]
    if not stages:
        return elsewhere
    return f"{elsewhere}, or first make it anew with `dvc repro {' '.join(stages)}`"
