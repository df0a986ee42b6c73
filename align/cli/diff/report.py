"""Differences as text: counts, numbers with their histograms, and rows with the words that changed."""

import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

import click

from align.compare.changes import Kind, NumberColumn, RowChange
from align.compare.join import Diff
from align.core.errors import printable

BARS = " ▁▂▃▄▅▆▇█"
MAX_TEXT = 600  # characters of a value that is shown
MAX_WORDS = 2000  # of a text whose words are compared: the time grows with their square
CONTEXT = 8  # unchanged words shown on each side of a change
SIGNS: dict[Kind, tuple[str, str]] = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", "yellow")}


def report(name: str, diff: Diff, a: str, b: str, kinds: Sequence[Kind], limit: int) -> Iterator[str]:
    """Yield the lines for one data set, safe for a terminal; click removes the colours outside of terminals."""
    yield from summary(name, diff, a, b)
    for change in diff.changes(kinds, limit):
        yield from _row(change, diff.key)


def summary(name: str, diff: Diff, a: str, b: str, bars: bool = True) -> Iterator[str]:
    """Yield what differs apart from the rows, with histograms as `bars` if asked for."""
    counts = f"{diff.added} added, {diff.removed} removed, {diff.changed} changed, {diff.unchanged} unchanged"
    yield click.style(f"{printable(name)}: {diff.rows_a} -> {diff.rows_b} rows; {counts}", bold=True)
    if not (diff.unchanged or diff.changed) and diff.rows_a and diff.rows_b:
        yield printable(f"  the sides have no row in common (by {', '.join(diff.key)}), so only their totals compare")
    for duplicates, side in ((diff.duplicates_a, a), (diff.duplicates_b, b)):
        if duplicates.keys:
            examples = ", ".join(json.dumps(dict(zip(diff.key, row, strict=True))) for row in duplicates.examples)
            counts = f"{duplicates.keys} duplicate keys in {duplicates.rows} rows"
            yield click.style(printable(f"  {side}: {counts}, matched in file order: {examples}"), fg="yellow")
    for sign, columns in (("+", diff.columns_added), ("-", diff.columns_removed)):
        for column, kind in columns.items():
            yield printable(f"  {sign} column {column} ({kind})")
    for column, (old, new) in diff.columns_retyped.items():
        yield printable(f"  ~ column {column}: {old} -> {new}")
    if diff.changed_columns:
        yield printable("  changed: " + ", ".join(f"{column} {n}" for column, n in diff.changed_columns.items()))
    if diff.preferences is not None and diff.changed:
        pairs = diff.preferences
        yield f"  pairs: {pairs.swapped} swapped, {pairs.new_chosen} new chosen, {pairs.new_rejected} new rejected"
    width = min(24, max(map(len, diff.numbers), default=0))
    for column, number in diff.numbers.items():
        yield printable(_number(column.ljust(width), number, b))
        if bars and len(number.edges) > 2 and number.a.count and number.b.count:
            low, high = _figure(number.edges[0]), _figure(number.edges[-1])
            old, new = _bars(number.a.histogram), _bars(number.b.histogram)
            yield f"  {' ' * width}  {low} |{old}| -> |{new}| {high}"


def _number(name: str, number: NumberColumn, b: str) -> str:
    old, new = number.a, number.b
    text = f"  {name}  mean {_figure(old.mean)} -> {_figure(new.mean)}"
    if old.quantiles and new.quantiles:
        text += f"  median {_figure(old.quantiles[2])} -> {_figure(new.quantiles[2])}"
    if number.higher or number.lower or number.equal:
        text += f"  ({b} higher in {number.higher}, lower in {number.lower}, equal in {number.equal})"
    return text


def _bars(counts: Sequence[int]) -> str:
    """Return a bar for each bin; only an empty bin has none."""
    most = max(counts)
    return "".join(BARS[-(-count * (len(BARS) - 1) // most)] for count in counts)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}" if abs(value) < 1e4 else f"{value:.6g}"


def _row(change: RowChange, key: Sequence[str]) -> Iterator[str]:
    a, b = change.a, change.b
    row: Mapping[str, Any] = b or a or {}
    sign, color = SIGNS[change.kind]
    yield click.style(_lines(f"  {sign} " + " ".join(f"{name}={_text(row[name])}" for name in key)), fg=color)
    if a is None or b is None:
        for name, value in row.items():
            if name not in key and value is not None:
                yield f"      {_lines(f'{name}: {_cut(_text(value))}')}"
        return
    names = [name for name in b if name in a and a[name] != b[name]]
    if {"chosen", "rejected"} <= {*names} and (a["chosen"], a["rejected"]) == (b["rejected"], b["chosen"]):
        yield "      chosen and rejected have swapped"
        names = [name for name in names if name not in ("chosen", "rejected")]
    for name in names:
        yield f"      {_lines(name)}: {_word_diff(_text(a[name]), _text(b[name]))}"


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(item, Mapping) and "content" in item for item in value):
        return " | ".join(f"{item.get('role', '')}: {item['content']}" for item in value)
    return json.dumps(value, ensure_ascii=False)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}..."


def _lines(text: str) -> str:
    """Return `text` for a terminal, its lines indented so that none looks like a line of the report."""
    return "\n        ".join(map(printable, text.split("\n")))


def _word_diff(old: str, new: str) -> str:
    """Return both texts in one, with git's marks `[-removed-]` and `{+added+}`, and long equal parts left out."""
    before, after = old.split(" "), new.split(" ")
    if max(len(before), len(after)) > MAX_WORDS:
        return f"{_mark('-', _cut(old))} {_mark('+', _cut(new))}"
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
            changed = ("-", before[i:j]), ("+", after[k:n])
            parts += [_mark(sign, " ".join(words)) for sign, words in changed if words]
    return " ".join(parts)


def _mark(sign: str, text: str) -> str:
    opening, closing, color = ("[", "]", "red") if sign == "-" else ("{", "}", "green")
    return click.style(f"{opening}{sign}{_lines(text)}{sign}{closing}", fg=color)
