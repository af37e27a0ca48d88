"""Regions of stored tensors: the blocks hold each element once, and no more bytes than they have to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch_checkpoint._region import MAX_SCATTERED_BYTES, cut_region


@st.composite
def regions(draw: st.DrawFn) -> tuple[list[int], list[int], list[int]]:
    shape = draw(st.lists(st.integers(0, 7), max_size=4))
    offsets = [draw(st.integers(0, size)) for size in shape]
    lengths = [draw(st.integers(0, size - offset)) for size, offset in zip(shape, offsets, strict=True)]
    return shape, offsets, lengths


@given(regions(), st.sampled_from([1, 2, 4, 16]), st.none() | st.integers(1, 200), st.integers(1, 200))
def test_the_blocks_hold_the_region_once(
    region: tuple[list[int], list[int], list[int]], itemsize: int, max_block_bytes: int | None, min_run_bytes: int
) -> None:
    shape, offsets, lengths = region
    stored = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
    expected = stored[tuple(slice(o, o + n) for o, n in zip(offsets, lengths, strict=True))]
    result = np.full(lengths, -1, dtype=np.int64)
    for block in cut_region(
        shape, offsets, lengths, itemsize, max_block_bytes=max_block_bytes, min_run_bytes=min_run_bytes
    ):
        assert block.start % itemsize == 0
        elements = stored.reshape(-1)[block.start // itemsize : block.end // itemsize]
        view = np.lib.stride_tricks.as_strided(
            elements, block.lengths, [stride * elements.itemsize for stride in block.strides]
        )
        place = tuple(slice(o, o + n) for o, n in zip(block.offsets, block.lengths, strict=True))
        assert (result[place] == -1).all()
        result[place] = view
        assert block.is_dense(itemsize) == (elements.size == view.size)
    assert (result == expected).all()


@given(regions(), st.integers(1, 200))
def test_a_block_is_longer_than_its_bound_only_when_it_is_one_element(
    region: tuple[list[int], list[int], list[int]], max_block_bytes: int
) -> None:
    for block in cut_region(*region, 4, max_block_bytes=max_block_bytes):
        assert block.end - block.start <= max_block_bytes or block.element_count == 1


@given(st.integers(1, 50), st.integers(1, 9), st.data())
def test_rows_take_exactly_their_bytes_in_one_block(rows: int, columns: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, rows - 1))
    count = data.draw(st.integers(1, rows - first))
    (block,) = cut_region([rows, columns], [first, 0], [count, columns], 2)
    assert (block.start, block.end) == (first * columns * 2, (first + count) * columns * 2)


def test_long_runs_of_columns_are_fetched_without_what_lies_between() -> None:
    blocks = list(cut_region([4, 1000], [0, 500], [4, 500], 4, min_run_bytes=2000))
    assert [(block.start, block.end) for block in blocks] == [
        (row * 4000 + 2000, row * 4000 + 4000) for row in range(4)
    ]


def test_scattered_regions_are_cut_where_no_bound_is_given() -> None:
    rows = 3 * 2**18
    columns = list(cut_region([rows, 100], [0, 10], [rows, 20], 4))
    assert max(block.end - block.start for block in columns) <= MAX_SCATTERED_BYTES
    assert sum(block.element_count for block in columns) == rows * 20
    (whole,) = cut_region([rows, 100], [0, 0], [rows, 100], 4)
    assert whole.end == rows * 400


def test_a_region_outside_its_tensor_is_refused() -> None:
    with pytest.raises(ValueError, match="not within"):
        list(cut_region([4, 4], [2, 0], [3, 4], 4))
