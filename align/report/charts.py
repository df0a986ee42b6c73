"""Static SVG charts of the report: intervals, lines and bars. Colours are classes of report.css.

All numbers are written with a fixed number of digits, so that equal values give equal bytes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH = 360  # of the drawing's own units; the page scales it
CHARACTER = 6.8  # width of a character at the size of a label, about
MAX_GROUP = 60  # width of a group of bars
SERIES = 6  # classes s0 to s5
Point = tuple[float, float]


@dataclass(frozen=True)
class Interval:
    """A difference with the ends of its interval (None: too few values for one), and the class of its verdict."""

    label: str
    mean: float | None
    low: float | None
    high: float | None
    verdict: str = ""


@dataclass(frozen=True)
class Axis:
    """A linear scale from values to the drawing."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the place of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers (1, 2 or 5 times a power of ten) from `low` to `high`."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def label(value: float) -> str:
    """Return a tick's number, as short as it can be."""
    return f"{value:.4g}"


def _bounds(values: Sequence[float], *, zero: bool = False) -> tuple[float, float]:
    low, high = min(values), max(values)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    margin = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def _number(value: float) -> str:
    return f"{value:.1f}"


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "label") -> Markup:
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(
        kind, _number(x), _number(y), anchor, text
    )


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(kind, *map(_number, (x1, y1, x2, y2)))


def _svg(title: str, height: float, parts: Sequence[Markup]) -> Markup:
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, _number(height), title)
    return head + Markup("").join(parts) + Markup("</svg>")


def interval_chart(title: str, rows: Sequence[Interval]) -> Markup:
    """Return a forest plot: a row per interval, and a line at 0. Rows without a mean have a dash."""
    left = 12 + CHARACTER * max((len(row.label) for row in rows), default=0)
    row_height, top = 24, 6
    bottom = top + row_height * len(rows)
    known = [value for row in rows for value in (row.mean, row.low, row.high) if value is not None]
    low, high = _bounds([*known, 0.0])
    x = Axis(low, high, left, WIDTH - 12)
    parts = [_line(x(tick), top, x(tick), bottom, "grid") for tick in ticks(low, high)]
    parts += [_text(x(tick), bottom + 15, label(tick), "middle") for tick in ticks(low, high)]
    parts.append(_line(x(0), top, x(0), bottom, "zero"))
    for i, row in enumerate(rows):
        y = top + row_height * (i + 0.5)
        parts.append(_text(left - 8, y + 4, row.label, "end", "name"))
        if row.mean is None:
            parts.append(_text(x(0) + 6, y + 4, "-"))
            continue
        kind = row.verdict.replace(" ", "-") or "cannot-tell"
        if row.low is not None and row.high is not None:
            parts.append(_line(x(row.low), y, x(row.high), y, f"interval {kind}"))
        parts.append(
            Markup('<circle class="{}" cx="{}" cy="{}" r="4"/>').format(
                f"mean {kind}", _number(x(row.mean)), _number(y)
            )
        )
    return _svg(title, bottom + 22, parts)


def line_chart(title: str, series: Mapping[str, Sequence[Point]], x_label: str = "step") -> Markup:
    """Return a line per series of (x, y) points; a series of one point is a dot."""
    height, top, bottom, left = 210, 10, 168, 48
    points = [point for line in series.values() for point in line]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x_low, x_high = (min(xs), max(xs)) if min(xs) < max(xs) else (min(xs) - 0.5, max(xs) + 0.5)
    y_low, y_high = _bounds(ys)
    x, y = Axis(x_low, x_high, left, WIDTH - 10), Axis(y_low, y_high, bottom, top)
    parts: list[Markup] = []
    for tick in ticks(y_low, y_high):
        parts += [_line(left, y(tick), WIDTH - 10, y(tick), "grid"), _text(left - 6, y(tick) + 4, label(tick), "end")]
    parts += [_text(x(tick), bottom + 16, label(tick), "middle") for tick in ticks(x_low, x_high) if tick == int(tick)]
    parts.append(_text(WIDTH - 10, bottom + 32, x_label, "end"))
    for i, line in enumerate(series.values()):
        places = [(_number(x(a)), _number(y(b))) for a, b in line]
        if len(places) == 1:
            [(cx, cy)] = places
            parts.append(Markup('<circle class="dot s{}" cx="{}" cy="{}" r="3"/>').format(i % SERIES, cx, cy))
        elif places:
            path = " ".join(f"{a},{b}" for a, b in places)
            parts.append(Markup('<polyline class="curve s{}" points="{}"/>').format(i % SERIES, path))
    return _svg(title, height, parts)


def bar_chart(title: str, labels: Sequence[str], series: Mapping[str, Sequence[float]]) -> Markup:
    """Return groups of bars from 0: a group per label, in it a bar per series."""
    height, top, bottom, left = 210, 10, 168, 48
    y_low, y_high = _bounds([value for values in series.values() for value in values], zero=True)
    if y_low < 0 <= min(value for values in series.values() for value in values):
        y_low = 0.0
    y = Axis(y_low, y_high, bottom, top)
    parts: list[Markup] = []
    for tick in ticks(y_low, y_high):
        parts += [_line(left, y(tick), WIDTH - 10, y(tick), "grid"), _text(left - 6, y(tick) + 4, label(tick), "end")]
    group = (WIDTH - 10 - left) / max(1, len(labels))
    bar = min(group * 0.8, MAX_GROUP) / max(1, len(series))
    for place, name in enumerate(labels):
        middle = left + group * (place + 0.5)
        start = middle - bar * len(series) / 2
        parts.append(_text(middle, bottom + 16, name, "middle"))
        for i, values in enumerate(series.values()):
            ends = sorted((y(values[place]), y(0)))
            parts.append(
                Markup('<rect class="s{}" x="{}" y="{}" width="{}" height="{}"/>').format(
                    i % SERIES, *map(_number, (start + bar * i, ends[0], bar * 0.92, ends[1] - ends[0]))
                )
            )
    parts.append(_line(left, y(0), WIDTH - 10, y(0), "zero"))
    return _svg(title, height, parts)


def legend(names: Sequence[str]) -> Markup:
    """Return the names of the series of a chart beside their colours; nothing for one series."""
    if len(names) < 2:
        return Markup("")
    items = [Markup('<span class="key s{}">{}</span>').format(i % SERIES, name) for i, name in enumerate(names)]
    return Markup('<p class="legend">') + Markup(" ").join(items) + Markup("</p>")
