"""The interval over seeds and conversations of benchmarks/learning.py."""

import random

import pytest

from align.report.statistics import bootstrap_interval
from benchmarks.learning import combined, crossed_interval
from tests.report.test_comparisons import model


def conversations(shift: float, count: int = 40) -> dict[str, list[float]]:
    generator = random.Random(3)
    return {f"c{i}": [generator.gauss(shift, 1.0)] for i in range(count)}


def width(interval: tuple[float, float] | None) -> float:
    assert interval is not None
    return interval[1] - interval[0]


def test_one_seed_has_the_interval_over_its_conversations_and_copies_of_it_add_no_information() -> None:
    values = conversations(0.5)
    plain = bootstrap_interval(list(values.values()))
    for seeds in (1, 3):
        assert crossed_interval([values] * seeds) == pytest.approx(plain, abs=0.05)


def test_seeds_that_differ_widen_the_interval_and_none_has_no_interval() -> None:
    alike = crossed_interval([conversations(0.5)] * 3)
    different = crossed_interval([conversations(shift) for shift in (-1.0, 0.5, 2.0)])
    assert width(different) > 2 * width(alike)
    assert crossed_interval([{}, {}]) is None


def test_a_change_is_the_mean_over_all_seeds_and_conversations_against_the_same_seeds_m0() -> None:
    runs = [
        {"m0": model([1.0, 2.0]), "m2": model([2.0, 2.0])},
        {"m0": model([3.0, 1.0]), "m2": model([3.0, 4.0])},
    ]
    found = combined(runs, "m2", "judge")
    assert found[""] == pytest.approx((1 + 0 + 0 + 3) / 4)
    low, high = found["_low"], found["_high"]
    assert low is not None
    assert high is not None
    assert 0 <= low < 1 < high <= 3
