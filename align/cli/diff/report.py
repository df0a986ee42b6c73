"""What `align diff` prints: counts, numbers with their histograms, and rows with the words that changed."""

import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

import click

from align.compare.join import Diff, Duplicates, Kind, NumberColumn, RowChange
from align.core.errors import printable

BARS = " ▁▂▃▄▅▆▇█"
MAX_TEXT = 600  # characters of a value that is shown
MAX_WORDS = 2000  # of a text whose words are compared: the time grows with their square
CONTEXT = 8  # unchanged words shown on each side of a change
SIGNS: dict[Kind, str] = {"added": "+", "removed": "-", "changed": "~"}
COLORS: dict[Kind, str] = {"added": "green", "removed": "red", "changed": "yellow"}


def report(name: str, diff: Diff, a: str, b: str, kinds: Sequence[Kind], limit: int) -> Iterator[str]:
    """Yield the lines for one data set, safe for a terminal; colours are click's, which it takes out of files."""
    yield from summary(name, diff, a, b)
    width = _width(diff)
    for column, number in diff.numbers.items():
        yield _number(printable(column).ljust(width), number, b)
        yield from _histogram(width, number)
    for kind in kinds:
        for change in diff.changes([kind], limit):
            yield from _row(change, diff.key)


def summary(name: str, diff: Diff, a: str, b: str) -> Iterator[str]:
    """Yield what there is to tell apart from numbers and rows."""
    a, b = printable(a), printable(b)
    counts = f"{diff.added} added, {diff.removed} removed, {diff.changed} changed, {diff.unchanged} unchanged"
    yield click.style(f"{printable(name)}: {diff.rows_a} -> {diff.rows_b} rows; {counts}", bold=True)
    if not (diff.unchanged or diff.changed) and diff.rows_a and diff.rows_b:
        yield f"  no row of one side is in the other, by {printable(', '.join(diff.key))}: other rows, not changed ones"
    for duplicates, side in ((diff.duplicates_a, a), (diff.duplicates_b, b)):
        yield from _duplicates(diff, duplicates, side)
    for name, kind in diff.columns_added.items():
        yield printable(f"  + column {name} ({kind})")
    for name, kind in diff.columns_removed.items():
        yield printable(f"  - column {name} ({kind})")
    for name, (old, new) in diff.columns_retyped.items():
        yield printable(f"  ~ column {name}: {old} -> {new}")
    if diff.changed_columns:
        yield printable("  changed: " + ", ".join(f"{column} {n}" for column, n in diff.changed_columns.items()))
    if diff.preferences is not None and diff.changed:
        pairs = diff.preferences
        yield f"  pairs: {pairs.swapped} swapped, {pairs.new_chosen} new chosen, {pairs.new_rejected} new rejected"


def facts(name: str, diff: Diff, a: str, b: str) -> Iterator[str]:
    """Yield the lines for a page, which draws histograms and rows itself."""
    for line in summary(name, diff, a, b):
        yield click.unstyle(line).strip()
    for column, number in diff.numbers.items():
        yield _number(printable(column), number, b).strip()


def _duplicates(diff: Diff, duplicates: Duplicates, side: str) -> Iterator[str]:
    if duplicates.keys:
        keys = ", ".join(json.dumps(dict(zip(diff.key, key, strict=True))) for key in duplicates.examples)
        yield click.style(
            printable(
                f"  {side}: {duplicates.keys} keys stand more than once, in {duplicates.rows} rows, such as {keys}; "
                "their rows are matched in the order of the file"
            ),
            fg="yellow",
        )


def _width(diff: Diff) -> int:
    return min(24, max((len(name) for name in diff.numbers), default=0))


def _number(name: str, number: NumberColumn, b: str) -> str:
    old, new = number.a, number.b
    text = f"  {name}  mean {_figure(old.mean)} -> {_figure(new.mean)}"
    if old.quantiles and new.quantiles:
        text += f"  median {_figure(old.quantiles[2])} -> {_figure(new.quantiles[2])}"
    if number.higher or number.lower or number.equal:
        text += f"  ({printable(b)} higher in {number.higher}, lower in {number.lower}, equal in {number.equal})"
    return text


def _histogram(width: int, number: NumberColumn) -> Iterator[str]:
    old, new = number.a, number.b
    if len(number.edges) > 2 and old.count and new.count:
        low, high = _figure(number.edges[0]), _figure(number.edges[-1])
        yield f"  {' ' * width}  {low} |{_bars(old.histogram)}| -> |{_bars(new.histogram)}| {high}"


def _bars(counts: Sequence[int]) -> str:
    """Return a bar for each bin; only an empty bin has none."""
    most = max(counts)
    return "".join(BARS[-(-count * (len(BARS) - 1) // most)] for count in counts)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}" if abs(value) < 1e4 else f"{value:.6g}"


def _row(change: RowChange, key: Sequence[str]) -> Iterator[str]:
    row = change.b if change.b is not None else change.a
    assert row is not None
    head = f"  {SIGNS[change.kind]} " + " ".join(f"{name}={_text(row[name])}" for name in key)
    yield click.style(_lines(head), fg=COLORS[change.kind])
    if change.a is None or change.b is None:
        columns = [name for name, value in row.items() if name not in key and value is not None]
        for name in columns:
            yield f"      {_lines(f'{name}: {_cut(_text(row[name]))}')}"
        return
    names = [name for name in change.b if name in change.a and change.a[name] != change.b[name]]
    if {"chosen", "rejected"} <= {*names} and _swapped(change.a, change.b):
        yield "      chosen and rejected have changed places"
        names = [name for name in names if name not in ("chosen", "rejected")]
    for name in names:
        yield f"      {_lines(name)}: {word_diff(_text(change.a[name]), _text(change.b[name]))}"


def _swapped(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Tell whether the replies of a pair have changed places."""
    return bool(a["chosen"] == b["rejected"] and a["rejected"] == b["chosen"])


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(item, Mapping) and "content" in item for item in value):
        return " | ".join(f"{item.get('role', '')}: {item['content']}" for item in value)
    return json.dumps(value, ensure_ascii=False)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}..."


def _lines(text: str) -> str:
    """Return `text` for a terminal, its lines below each other: none can pass for one of the report."""
    return "\n        ".join(map(printable, text.split("\n")))


def word_diff(old: str, new: str) -> str:
    """Return both texts in one, `[-removed-]` and `{+added+}` as git marks them; long equal parts are left out."""
    before, after = old.split(" "), new.split(" ")
    if max(len(before), len(after)) > MAX_WORDS:
        return f"{_removed(_cut(old))} {_added(_cut(new))}"
    if max(len(before), len(after)) == 1:
        return f"{_lines(old)} -> {_lines(new)}"
    parts = []
    steps = SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    for number, (tag, i, j, k, n) in enumerate(steps):
        if tag == "equal":
            words = before[i:j]
            head = 0 if number == 0 else CONTEXT
            tail = 0 if number == len(steps) - 1 else CONTEXT
            if len(words) > head + tail + 1:
                words = [*words[:head], "...", *words[len(words) - tail :]]
            parts.append(_lines(" ".join(words)))
        else:
            parts += [_removed(" ".join(before[i:j]))] if j > i else []
            parts += [_added(" ".join(after[k:n]))] if n > k else []
    return " ".join(parts)


def _removed(text: str) -> str:
    return click.style(f"[-{_lines(text)}-]", fg="red")


def _added(text: str) -> str:
    return click.style(f"{{+{_lines(text)}+}}", fg="green")
