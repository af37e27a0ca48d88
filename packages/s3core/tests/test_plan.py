from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3core import ConfigError
from s3core._plan import (
    FIRST_RANGE,
    MAX_OBJECT_SIZE,
    MAX_PARTS,
    STREAM_RANGE,
    next_range_size,
    next_window,
    plan_part_size,
    plan_parts_in_flight,
    split_evenly,
    split_range,
)

MiB = 2**20
part_sizes = st.integers(5 * MiB, 5 * 1024 * MiB)


@given(start=st.integers(0, 10**6), length=st.integers(0, 10**6), part_size=st.integers(1000, 10**7))
def test_ranges_cover_exactly_what_is_asked_for(start: int, length: int, part_size: int) -> None:
    ranges = list(split_range(start, start + length, part_size))
    assert [low for low, _ in ranges] == list(range(start, start + length, part_size))
    assert all(0 < high - low <= part_size for low, high in ranges)
    assert [high for _, high in ranges[:-1]] == [low for low, _ in ranges[1:]]
    assert not ranges or ranges[-1][1] == start + length


@given(size=st.integers(1, 10**7), range_size=st.integers(1000, 10**7))
def test_even_ranges_cover_everything_and_are_about_as_long_as_wanted(size: int, range_size: int) -> None:
    ranges = list(split_evenly(size, range_size))
    lengths = [high - low for low, high in ranges]
    assert [high for _, high in ranges] == list(itertools.accumulate(lengths))
    assert ranges[-1][1] == size
    assert max(lengths) - min(lengths) <= 1
    assert len(ranges) == 1 or 0.6 * range_size < lengths[0] < 1.5 * range_size


@given(part_size=part_sizes, size=st.integers(0, MAX_OBJECT_SIZE))
def test_an_object_of_any_size_fits_into_ten_thousand_parts(part_size: int, size: int) -> None:
    planned = plan_part_size(part_size, size)
    assert planned >= part_size
    assert planned * MAX_PARTS >= size
    assert planned <= 5 * 1024 * MiB
    assert planned == part_size or (planned - MiB) * MAX_PARTS < size


def test_an_unknown_size_leaves_the_part_size_as_configured() -> None:
    assert plan_part_size(8 * MiB, None) == 8 * MiB


@pytest.mark.parametrize("kind", ["uint32", "uint64", "int32", "int64"])
def test_a_size_of_numpy_is_as_good_as_one_of_python(kind: str) -> None:
    size = getattr(pytest.importorskip("numpy"), kind)(2**31 - 1)
    assert plan_part_size(8 * MiB, size) == 8 * MiB


@pytest.mark.parametrize("size", [-1, MAX_OBJECT_SIZE + 1])
def test_a_size_that_no_object_has_is_refused(size: int) -> None:
    with pytest.raises(ConfigError, match=f"size_hint is {size}"):
        plan_part_size(8 * MiB, size)


def test_ranges_of_a_stream_grow_from_small_to_large() -> None:
    sizes = list(itertools.accumulate(range(20), lambda size, _: next_range_size(size)))[1:]
    assert sizes[0] == FIRST_RANGE
    assert sizes[-1] == sizes[-2] == STREAM_RANGE
    assert all(after in (2 * before, STREAM_RANGE) for before, after in itertools.pairwise(sizes))


@given(parts=st.integers(1, 1000), limit=st.integers(1, 1000))
def test_a_window_never_grows_past_its_limit(parts: int, limit: int) -> None:
    assert next_window(parts, limit) == min(limit, 2 * parts)


@given(
    part_size=part_sizes,
    concurrency=st.integers(1, 1024),
    limit=st.integers(5 * MiB, 2**40),
    is_copied=st.booleans(),
)
def test_parts_in_flight_keep_to_concurrency_and_memory(
    part_size: int, concurrency: int, limit: int, is_copied: bool
) -> None:
    parts = plan_parts_in_flight(part_size, concurrency, limit, is_copied=is_copied)
    assert 1 <= parts <= concurrency
    assert parts == 1 or parts * part_size <= limit
