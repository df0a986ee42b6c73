"""Batches: every row once, in order, within the limits, with little padding."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from align.models.batching import MAX_LENGTH_RATIO, cut_batches


@given(lengths=st.lists(st.integers(1, 300), max_size=60), batch_size=st.integers(1, 9))
def test_batches_of_cut_batches_hold_each_row_once_in_order_with_little_padding(
    lengths: list[int], batch_size: int
) -> None:
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    batches = list(cut_batches(order, lengths, batch_size))
    assert [i for batch in batches for i in batch] == order
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert all(lengths[batch[-1]] <= MAX_LENGTH_RATIO * lengths[batch[0]] for batch in batches)
    # Full wherever the lengths allow it.
    for batch, following in pairwise(batches):
        assert len(batch) == batch_size or lengths[following[0]] > MAX_LENGTH_RATIO * lengths[batch[0]]
