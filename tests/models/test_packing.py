"""A packed sequence gives each row what it would have alone, and computes what rows share once."""

from hypothesis import given, settings
from hypothesis import strategies as st

from align.models.packing import pack

rows_that_begin_alike = st.tuples(
    st.lists(st.integers(3, 5), max_size=6),
    st.lists(st.lists(st.integers(3, 5), min_size=1, max_size=6), min_size=1, max_size=4),
).map(lambda parts: [parts[0] + rest for rest in parts[1]])


@given(rows_that_begin_alike)
@settings(deadline=None)
def test_in_a_pack_each_token_sees_its_own_row_up_to_itself_and_nothing_else(rows: list[list[int]]) -> None:
    packed = pack(rows)
    ids, positions = packed.input_ids[0], packed.position_ids[0]
    for row, last in zip(rows, packed.last.tolist(), strict=True):
        seen = packed.visible[0, 0, last].nonzero().squeeze(1)
        assert ids[seen].tolist() == row
        assert positions[seen].tolist() == list(range(len(row)))
        for place in seen.tolist():
            inner = packed.visible[0, 0, place].nonzero().squeeze(1)
            assert inner.tolist() == [i for i in seen.tolist() if i <= place]


@given(rows_that_begin_alike)
@settings(deadline=None)
def test_each_beginning_of_a_row_is_there_once(rows: list[list[int]]) -> None:
    beginnings = {tuple(row[: end + 1]) for row in rows for end in range(len(row))}
    assert pack(rows).input_ids.shape == (1, len(beginnings))


def test_a_reply_that_breaks_off_costs_one_token_more() -> None:
    whole, broken = [7, 8, 9, 10, 11, 2], [7, 8, 9, 2]
    assert pack([whole, broken]).input_ids.tolist() == [[*whole, 2]]
