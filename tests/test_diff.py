from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.lib.diff import NumericColumn, diff_rows

Rows = list[dict[str, Any]]
row_values = st.fixed_dictionaries(
    {"id": st.integers(0, 8)},
    optional={"score": st.none() | st.integers(0, 5), "text": st.sampled_from(["x", "y"]), "ok": st.booleans()},
)
row_lists = st.lists(row_values, max_size=6, unique_by=lambda row: row["id"])


@settings(derandomize=True, deadline=None, max_examples=50)
@given(row_lists)
def test_nothing_differs_from_itself(rows: Rows) -> None:
    result = diff_rows(rows, [dict(row) for row in rows], ["id"])
    assert result.same
    assert result.unchanged == len(rows)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(row_lists)
def test_the_order_of_rows_is_no_difference(rows: Rows) -> None:
    assert diff_rows(rows, rows[::-1], ["id"]).same


@settings(derandomize=True, deadline=None, max_examples=100)
@given(row_lists, row_lists)
def test_the_two_directions_mirror_each_other(a: Rows, b: Rows) -> None:
    forward, backward = diff_rows(a, b, ["id"]), diff_rows(b, a, ["id"])
    assert forward.added == backward.removed
    assert forward.removed == backward.added
    assert {old["id"]: (old, new) for old, new in forward.changed} == {
        new["id"]: (new, old) for old, new in backward.changed
    }
    assert (forward.columns_added, forward.columns_removed) == (backward.columns_removed, backward.columns_added)
    assert forward.changed_columns == backward.changed_columns
    assert forward.same == backward.same
    assert forward.numbers == {
        name: NumericColumn(number.mean_b, number.mean_a, number.lower, number.higher, number.equal)
        for name, number in backward.numbers.items()
    }


@settings(derandomize=True, deadline=None, max_examples=100)
@given(row_lists, row_lists)
def test_every_row_is_told_exactly_once(a: Rows, b: Rows) -> None:
    result = diff_rows(a, b, ["id"])
    assert len(result.removed) + len(result.changed) + result.unchanged == result.rows_a == len(a)
    assert len(result.added) + len(result.changed) + result.unchanged == result.rows_b == len(b)
    assert result.same == (sorted(map(repr_of, a)) == sorted(map(repr_of, b)))


def repr_of(row: dict[str, Any]) -> str:
    return repr(sorted(row.items()))


def test_added_removed_changed_and_unchanged_rows() -> None:
    a = [{"id": 1, "text": "x"}, {"id": 2, "text": "x"}, {"id": 3, "text": "x"}]
    b = [{"id": 3, "text": "x"}, {"id": 2, "text": "y"}, {"id": 4, "text": "x"}]
    result = diff_rows(a, b, ["id"])
    assert (result.added, result.removed) == ([b[2]], [a[0]])
    assert (result.changed, result.unchanged) == ([(a[1], b[1])], 1)
    assert not result.same


def test_changed_columns_are_counted_over_the_rows_in_common() -> None:
    a = [{"id": i, "text": "x", "note": "n", "fixed": 0} for i in range(3)]
    b = [{**row, "text": "y", "note": "m" if row["id"] == 0 else "n"} for row in a] + [{"id": 9, "fixed": 7}]
    assert diff_rows(a, b, ["id"]).changed_columns == {"text": 3, "note": 1}


def test_new_and_lost_columns_are_a_difference() -> None:
    result = diff_rows([{"id": 1, "old": 1}], [{"id": 1, "new": 1}], ["id"])
    assert (result.columns_added, result.columns_removed) == (["new"], ["old"])
    assert not result.same


def test_a_side_without_rows_has_no_columns_to_lose() -> None:
    result = diff_rows([], [{"id": 1}], ["id"])
    assert (result.columns_added, result.columns_removed, result.added) == ([], [], [{"id": 1}])


def test_wins_are_counted_over_rows_in_common_and_means_over_all() -> None:
    a = [{"id": i, "score": score} for i, score in enumerate([1, 2, 3, 4, None])]
    b = [{"id": i, "score": score} for i, score in enumerate([2, 3.5, 3, 0, 5])] + [{"id": 9, "score": 1}]
    number = diff_rows(a, b, ["id"]).numbers["score"]
    assert (number.higher, number.lower, number.equal) == (2, 1, 1)
    assert (number.mean_a, number.mean_b) == (2.5, 14.5 / 6)


def test_truth_values_texts_and_keys_are_no_number_columns() -> None:
    rows = [{"id": 1, "ok": True, "text": "3", "score": 2}]
    assert list(diff_rows(rows, rows, ["id"]).numbers) == ["score"]


def test_several_columns_together_may_be_the_key() -> None:
    a = [{"id": 1, "sample": s, "text": "x"} for s in (0, 1)]
    b = [{"id": 1, "sample": 1, "text": "x"}, {"id": 1, "sample": 2, "text": "x"}]
    result = diff_rows(a, b, ["id", "sample"])
    assert (result.added, result.removed, result.unchanged) == ([b[1]], [a[0]], 1)


@pytest.mark.parametrize(("side", "a", "b"), [("A", [1, 1], [1]), ("B", [1], [2, 1, 1])])
def test_a_duplicate_key_is_an_error_that_names_row_and_side(side: str, a: list[int], b: list[int]) -> None:
    with pytest.raises(ValueError, match=rf"^row \d of side {side} has the key \(1,\) of an earlier row"):
        diff_rows([{"id": i} for i in a], [{"id": i} for i in b], ["id"])


def test_a_missing_key_column_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match=r"^row 2 of side B has no key column 'id'"):
        diff_rows([], [{"id": 1}, {"name": 2}], ["id"])


@pytest.mark.parametrize("key", [["a"], {"a": 1}])
def test_a_key_that_is_no_plain_value_is_an_error(key: object) -> None:
    with pytest.raises(ValueError, match=r"^row 1 of side A "):
        diff_rows([{"id": key}], [], ["id"])
