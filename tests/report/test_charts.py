"""The SVG charts: where a value is drawn, and that equal input gives equal bytes."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.report.charts import WIDTH, Interval, bar_chart, interval_chart, legend, line_chart, ticks

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)


def attributes(svg: str, tag: str, kind: str) -> list[dict[str, str]]:
    """Return the attributes of each element of a class."""
    found = [dict(re.findall(r'([\w-]+)="([^"]*)"', text)) for text in re.findall(rf"<{tag} ([^>]*)>", svg)]
    return [element for element in found if kind in element.get("class", "").split()]


@given(NUMBERS, st.floats(1e-3, 1e6))
def test_ticks_are_few_round_and_within_the_axis(low: float, width: float) -> None:
    marks = ticks(low, low + width)
    assert 1 <= len(marks) <= 12
    assert all(low - 1e-6 * width <= mark <= low + width * (1 + 1e-6) for mark in marks)


def test_an_interval_is_drawn_from_its_low_to_its_high_end_around_its_mean() -> None:
    svg = interval_chart("t", [Interval("m1", 1.0, 0.0, 2.0, "better"), Interval("m2", -1.0, -2.0, 0.0, "worse")])

    better, worse = attributes(svg, "line", "better"), attributes(svg, "line", "worse")
    zero = float(attributes(svg, "line", "zero")[0]["x1"])
    assert float(better[0]["x1"]) == pytest.approx(zero)
    assert float(worse[0]["x2"]) == pytest.approx(zero)
    means = [float(circle["cx"]) for circle in attributes(svg, "circle", "mean")]
    assert means[0] - zero == pytest.approx(zero - means[1], abs=0.2)
    assert means[0] == pytest.approx((float(better[0]["x1"]) + float(better[0]["x2"])) / 2, abs=0.2)


def test_a_row_without_an_interval_keeps_its_mean_and_one_without_a_mean_a_dash() -> None:
    svg = interval_chart("t", [Interval("m1", 1.0, None, None), Interval("m2", None, None, None)])
    assert len(attributes(svg, "circle", "mean")) == 1
    assert ">-</text>" in svg


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=50))
def test_every_point_of_a_line_is_inside_the_drawing(points: list[tuple[float, float]]) -> None:
    svg = line_chart("t", {"loss": sorted(points)})
    drawn = [
        tuple(map(float, pair.split(",")))
        for line in attributes(svg, "polyline", "curve")
        for pair in line["points"].split()
    ]
    assert all(0 <= x <= WIDTH and 0 <= y <= 210 for x, y in drawn)
    assert svg == line_chart("t", {"loss": sorted(points)})


def test_a_bar_starts_at_zero_and_is_as_high_as_its_value() -> None:
    svg = bar_chart("t", ["a", "b", "c"], {"m1": [1.0, 2.0, 0.0]})
    heights = [float(bar["height"]) for bar in attributes(svg, "rect", "s0")]
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.2)
    assert heights[2] == 0
    bottoms = {round(float(bar["y"]) + float(bar["height"]), 0) for bar in attributes(svg, "rect", "s0")}
    assert len(bottoms) == 1


def test_names_are_escaped() -> None:
    name = '<img src="x">&'
    for svg in (
        interval_chart(name, [Interval(name, 1, 0, 2)]),
        bar_chart(name, [name], {name: [1.0]}),
        legend([name, "b"]),
    ):
        assert "<img" not in svg
        assert "&lt;img" in svg
