"""Bytes that are filled in place."""

from __future__ import annotations

import gc

import pytest

from s3torch_datasets._new_bytes import new_bytes


@pytest.mark.parametrize("filled", [5, 3])
def test_they_are_as_long_as_what_was_written(filled: int) -> None:
    def fill(view: memoryview) -> int:
        view[:filled] = b"abcde"[:filled]
        return filled

    assert new_bytes(5, fill) == b"abcde"[:filled]


def test_a_piece_of_the_view_that_lives_on_keeps_the_memory() -> None:
    kept: list[memoryview] = []

    def fill(view: memoryview) -> int:
        view[:] = b"a" * len(view)
        kept.append(view[:10])  # as the traceback of an error may
        raise OSError("cut")

    with pytest.raises(OSError, match="cut"):
        new_bytes(100, fill)
    gc.collect()
    others = [bytes(bytearray(b"b" * 100)) for _ in range(100)]  # would take the memory
    assert bytes(kept[0]) == b"a" * 10
    assert len(others) == 100
