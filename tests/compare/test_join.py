"""The join of two JSONL files by key: what it finds is what a plain loop over the rows finds."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.compare.changes import RowChange
from align.compare.join import Diff, compare
from align.core.errors import InputError

Rows = Sequence[dict[str, Any]]
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=4)
row_values: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"id": st.integers(0, 8)},
    optional={
        "score": st.none() | st.integers(-5, 5),
        "share": st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53),
        "text": TEXTS,
        "ok": st.booleans(),
        "list": st.lists(TEXTS, max_size=2),
        "any": st.none() | st.booleans() | TEXTS | st.just({"a": 1}),
    },
)
row_lists = st.lists(row_values, max_size=6, unique_by=lambda row: row["id"])
thorough = settings(derandomize=True, deadline=None, max_examples=60)


@contextmanager
def joined(a: Rows, b: Rows, key: Sequence[str] = ("id",), tolerance: float = 0.0) -> Iterator[Diff]:
    with TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("a.jsonl", "b.jsonl")]
        for path, rows in zip(paths, (a, b), strict=True):
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        with compare(paths[0], paths[1], key, tolerance) as found:
            yield found


def values(row: Any) -> dict[str, Any]:
    """Return a row without nulls, which a missing column is equal to."""
    return {name: value for name, value in row.items() if value is not None}


def rows_of(found: Diff, kind: Any) -> list[tuple[Any, Any]]:
    return [
        (None if change.a is None else values(change.a), None if change.b is None else values(change.b))
        for change in found.changes([kind])
    ]


@thorough
@given(row_lists)
def test_nothing_differs_from_itself(rows: Rows) -> None:
    with joined(rows, rows[::-1]) as found:
        assert found.same
        assert (found.unchanged, found.rows_a, found.rows_b) == (len(rows),) * 3
        assert list(found.changes()) == []


@thorough
@given(row_lists, row_lists)
def test_every_row_is_told_exactly_once_and_as_a_loop_over_the_rows_tells_it(a: Rows, b: Rows) -> None:
    old, new = ({row["id"]: values(row) for row in rows} for rows in (a, b))
    with joined(a, b) as found:
        assert rows_of(found, "added") == [(None, row) for key, row in new.items() if key not in old]
        assert rows_of(found, "removed") == [(row, None) for key, row in old.items() if key not in new]
        # A column of one side alone is a new one, and no change of its rows.
        shared = {name for row in a for name in row} & {name for row in b for name in row}
        differing = {
            key: {name for name in shared if not same(old[key].get(name), new[key].get(name))}
            for key in old.keys() & new
        }
        changed = [(old[key], row) for key, row in new.items() if differing.get(key)]
        assert rows_of(found, "changed") == changed
        assert (found.changed, found.unchanged) == (len(changed), len(differing) - len(changed))
        assert (found.rows_a, found.rows_b) == (len(a), len(b))
        counts = {name: sum(name in names for names in differing.values()) for name in shared}
        assert found.changed_columns == {name: count for name, count in counts.items() if count}


def same(a: Any, b: Any) -> bool:
    """Compare as JSON does, to which true is not 1; of numbers in one column the wider type holds both."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, float) or isinstance(b, float):
        return a is not None and b is not None and float(a) == float(b)
    return bool(a == b)


@thorough
@given(row_lists, row_lists)
def test_the_two_directions_mirror_each_other(a: Rows, b: Rows) -> None:
    with joined(a, b) as forward, joined(b, a) as backward:
        assert (forward.added, forward.removed) == (backward.removed, backward.added)
        assert (forward.changed, forward.changed_columns) == (backward.changed, backward.changed_columns)
        assert (forward.columns_added, forward.columns_removed) == (backward.columns_removed, backward.columns_added)
        for name, number in forward.numbers.items():
            other = backward.numbers[name]
            assert (number.a, number.b, number.higher, number.edges) == (other.b, other.a, other.lower, other.edges)


@thorough
@given(row_lists, row_lists)
def test_histograms_hold_every_number_and_quantiles_are_values(a: Rows, b: Rows) -> None:
    with joined(a, b) as found:
        for name, number in found.numbers.items():
            for side, rows in ((number.a, a), (number.b, b)):
                own = sorted(float(row[name]) for row in rows if row.get(name) is not None)
                assert (side.count, sum(side.histogram)) == (len(own), len(own))
                assert set(side.quantiles) <= set(own)
                if own:
                    assert (side.quantiles[0], side.quantiles[-1]) == (own[0], own[-1])
                    assert side.mean is None or math.isclose(side.mean, math.fsum(own) / len(own), abs_tol=1e290)


def test_changed_columns_new_columns_and_other_types_are_told() -> None:
    a = [{"id": i, "text": "a", "gone": 1, "kind": i} for i in range(3)]
    b = [{"id": i, "text": "b" if i else "a", "new": [1], "kind": str(i)} for i in range(3)]
    with joined(a, b) as found:
        assert found.columns_added == {"new": "JSON"}
        assert found.columns_removed == {"gone": "integer"}
        assert found.columns_retyped == {"kind": ("integer", "text")}
        assert found.changed_columns == {"text": 2, "kind": 3}
        assert not found.same


def test_a_side_without_rows_has_no_columns_to_lose() -> None:
    with joined([], [{"id": 1, "x": 2}]) as found:
        assert (found.added, found.columns_added, found.rows_a) == (1, {}, 0)
        assert list(found.changes()) == [RowChange("added", None, {"id": 1, "x": 2})]


def test_two_sides_without_rows_are_the_same() -> None:
    with joined([], []) as found:
        assert found.same


def test_wins_are_counted_over_rows_in_common_and_means_over_all() -> None:
    a: Rows = [{"id": 1, "score": 1}, {"id": 2, "score": 3}, {"id": 3, "score": None}, {"id": 4, "score": 8}]
    b = [{"id": 1, "score": 2}, {"id": 2, "score": 3}, {"id": 3, "score": 5}, {"id": 5, "score": 0}]
    with joined(a, b) as found:
        number = found.numbers["score"]
        assert (number.a.mean, number.b.mean, number.mean_difference) == (4.0, 2.5, 0.5)
        assert (number.higher, number.lower, number.equal) == (1, 0, 1)
        assert (number.a.quantiles[2], number.edges[0], number.edges[-1]) == (3.0, 0.0, 8.0)
        assert [sum(side.histogram) for side in (number.a, number.b)] == [3, 4]


def test_numbers_within_the_tolerance_are_equal() -> None:
    a, b = [{"id": i, "score": 1.0} for i in range(3)], [{"id": i, "score": 1 + i / 10} for i in range(3)]
    with joined(a, b, tolerance=0.15) as found:
        assert (found.changed, found.unchanged) == (1, 2)
        assert (found.numbers["score"].higher, found.numbers["score"].equal) == (1, 2)
    with joined(a, [{"id": i} for i in range(3)], tolerance=9.0) as found:
        assert found.columns_removed == {"score": "number"}
    with joined(a, [{"id": 0, "score": None}, *b[1:]], tolerance=9.0) as found:
        assert found.changed == 1


def test_swapped_pairs_are_told_from_new_winners_and_new_losers() -> None:
    a = [{"id": i, "chosen": "good", "rejected": "bad"} for i in range(5)]
    changes = [{"chosen": "bad", "rejected": "good"}, {"chosen": "best"}, {"rejected": "worst"}, {"rejected": "x"}, {}]
    b = [row | change for row, change in zip(a, changes, strict=True)]
    with joined(a, b) as found:
        assert found.preferences is not None
        assert vars(found.preferences) == {"swapped": 1, "new_chosen": 1, "new_rejected": 2}
    equal = [{"id": 1, "chosen": "same", "rejected": "same"}]
    with joined(equal, equal) as found:
        assert found.preferences is not None
        assert found.preferences.swapped == 0


def test_several_columns_together_may_be_the_key() -> None:
    a = [{"id": 1, "sample": s, "text": "x"} for s in (0, 1)]
    with joined(a, [a[0], a[1] | {"text": "y"}], ["id", "sample"]) as found:
        assert (found.changed, found.unchanged) == (1, 1)


def test_rows_of_one_key_are_matched_in_order_and_the_key_is_reported() -> None:
    a = [{"id": 1, "n": 0}, {"id": 2, "n": 0}, {"id": 1, "n": 1}]
    b = [{"id": 1, "n": 0}, {"id": 1, "n": 5}, {"id": 1, "n": 2}]
    with joined(a, b) as found:
        assert (vars(found.duplicates_a), vars(found.duplicates_b)) == (
            {"keys": 1, "rows": 2, "examples": [[1]]},
            {"keys": 1, "rows": 3, "examples": [[1]]},
        )
        assert rows_of(found, "changed") == [({"id": 1, "n": 1}, {"id": 1, "n": 5})]
        assert (found.added, found.removed, found.unchanged) == (1, 1, 1)


def test_a_missing_key_column_is_an_error_that_names_row_and_column() -> None:
    with pytest.raises(InputError, match=r"b\.jsonl: row 2 has no key column id"), joined([], [{"id": 1}, {"x": 2}]):
        pass
    with pytest.raises(InputError, match=r"a\.jsonl: no row has the key column name"), joined([{"x": 1}], [], ["name"]):
        pass


@pytest.mark.parametrize("key", [[1], {"a": 1}])
def test_a_key_that_is_no_plain_value_is_an_error(key: object) -> None:
    sides: list[tuple[Rows, Rows]] = [([{"id": key}], [{"id": key}]), ([{"id": 1}, {"id": key}], [{"id": 1}])]
    for a, b in sides:
        with pytest.raises(InputError, match=r"a\.jsonl: row \d has a list or an object as its key id"), joined(a, b):
            pass


def test_keys_of_several_types_are_told_apart() -> None:
    with joined([{"id": 1, "x": 1}, {"id": "a", "x": 1}], [{"id": "1", "x": 1}, {"id": "a", "x": 2}]) as found:
        assert (found.added, found.removed, found.changed) == (1, 1, 1)
        assert rows_of(found, "added") == [(None, {"id": "1", "x": 1})]


def test_columns_that_differ_in_case_alone_are_an_error() -> None:
    with (
        pytest.raises(InputError, match="columns A and a differ only in case"),
        joined([{"id": 1, "A": 1, "a": 2}], []),
    ):
        pass


@pytest.mark.parametrize(
    "name", ["'", '"', "a.b", "/", "~", "*", "$", " ", "é", "a b; DROP TABLE a", "rowid", "a_row", "c0"]
)
def test_any_column_name_is_compared(name: str) -> None:
    with joined([{"id": 1, name: 1}], [{"id": 1, name: 2}]) as found:
        assert found.changed_columns == {name: 1}
        assert rows_of(found, "changed") == [({"id": 1, name: 1}, {"id": 1, name: 2})]


def test_a_column_that_only_a_late_row_has_is_compared() -> None:
    a = [{"id": i} for i in range(500)]
    with joined([*a, {"id": 500, "late": "x"}], [*a, {"id": 500, "late": "y"}]) as found:
        assert found.changed_columns == {"late": 1}


def test_a_path_with_the_signs_of_a_pattern_is_one_file(tmp_path: Path) -> None:
    for name in ("[a]*.jsonl", "a1.jsonl"):
        (tmp_path / name).write_text('{"id": 1}\n')
    (tmp_path / "it's.jsonl").write_text('{"id": 1}\n')
    with compare(tmp_path / "[a]*.jsonl", tmp_path / "it's.jsonl") as found:
        assert (found.rows_a, found.rows_b) == (1, 1)


def test_texts_that_look_like_dates_and_numbers_stay_texts() -> None:
    rows = [{"id": "1", "date": "2024-01-01", "number": "1.0", "uuid": "123e4567-e89b-12d3-a456-426614174000"}]
    with joined([], rows) as found:
        assert rows_of(found, "added") == [(None, rows[0])]
        assert found.numbers == {}


def test_the_same_comparison_gives_the_same_bytes_in_one_thread(tmp_path: Path) -> None:
    for name, shift in (("a.jsonl", 0.1), ("b.jsonl", 0.3)):
        rows = ({"id": i, "x": math.sin(i) + shift} for i in range(20_000))
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = []
    for _ in range(3):
        with compare(tmp_path / "a.jsonl", tmp_path / "b.jsonl", threads=1) as diff:
            found.append(json.dumps(diff.as_dict()))
    assert found[0] == found[1] == found[2]
