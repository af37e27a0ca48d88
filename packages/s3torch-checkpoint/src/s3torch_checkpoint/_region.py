"""Which bytes of a stored tensor hold a rectangular region of it: all in one run, block by block, or run by run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

KiB = 2**10
# A run at least this long is fetched without what lies between it and the next; shorter ones share a request.
MIN_RUN_BYTES = 512 * KiB
# A block with other elements between its own passes through a buffer, which this bounds.
MAX_SCATTERED_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a region, and the bytes from its first to its last element.

    Args:
        offsets: Where it begins within the region, in elements of each dimension.
        lengths: Its shape.
        start: Offset of its first byte from the first byte of the stored tensor.
        end: Offset past its last byte.
        strides: Strides of the stored tensor in elements, for a view over these bytes.
    """

    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    start: int
    end: int
    strides: tuple[int, ...]

    @property
    def element_count(self) -> int:
        """Number of elements that the block holds; fewer than its bytes where other elements lie between."""
        return math.prod(self.lengths)

    def is_dense(self, itemsize: int) -> bool:
        """Whether its bytes hold nothing but its elements, in their order."""
        return self.end - self.start == self.element_count * itemsize


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides in elements of a contiguous tensor of this shape."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def cut_region(
    shape: Sequence[int],
    offsets: Sequence[int],
    lengths: Sequence[int],
    itemsize: int,
    *,
    max_block_bytes: int | None = None,
    min_run_bytes: int = MIN_RUN_BYTES,
) -> Iterator[Block]:
    """Cut a region of a contiguous stored tensor into blocks of bytes.

    Args:
        shape: Shape of the stored tensor.
        offsets: Where the region begins, one per dimension.
        lengths: Shape of the region.
        itemsize: Bytes of one element.
        max_block_bytes: The longest block, as far as single elements allow; None for no bound where the bytes of the
            region lie in one run, and `MAX_SCATTERED_BYTES` elsewhere.
        min_run_bytes: Length from which the runs of a scattered region are blocks of their own.

    Yields:
        Blocks that together hold the region once; none for an empty region.

    Raises:
        ValueError: The region does not lie within the tensor.
    """
    if not len(shape) == len(offsets) == len(lengths) or any(
        offset < 0 or length < 0 or offset + length > size
        for size, offset, length in zip(shape, offsets, lengths, strict=True)
    ):
        raise ValueError(f"the region at {tuple(offsets)} of shape {tuple(lengths)} is not within {tuple(shape)}")
    if 0 in lengths:
        return
    cutter = _Cutter(contiguous_strides(shape), itemsize, max_block_bytes, min_run_bytes)
    first = sum(offset * stride for offset, stride in zip(offsets, cutter.strides, strict=True))
    yield from cutter.cut([0] * len(shape), list(lengths), first)


@dataclass(frozen=True, slots=True)
class _Cutter:
    strides: tuple[int, ...]
    itemsize: int
    max_block_bytes: int | None
    min_run_bytes: int

    def cut(self, offsets: list[int], lengths: list[int], first: int) -> Iterator[Block]:
        span = self._span(lengths)
        is_dense = span == math.prod(lengths)
        limit = self.max_block_bytes
        if limit is None and not is_dense:
            limit = MAX_SCATTERED_BYTES
        too_long = limit is not None and span * self.itemsize > limit
        apart = not is_dense and self._run(lengths) * self.itemsize >= self.min_run_bytes
        dimension = next((index for index, length in enumerate(lengths) if length > 1), None)
        if dimension is None or not (too_long or apart):
            start = first * self.itemsize
            yield Block(tuple(offsets), tuple(lengths), start, start + span * self.itemsize, self.strides)
            return
        stride = self.strides[dimension]
        count = 1
        if not apart and limit is not None:
            inner = self._span([1 if index == dimension else length for index, length in enumerate(lengths)])
            count = max(1, 1 + (limit // self.itemsize - inner) // stride)
        for begin in range(0, lengths[dimension], count):
            rows = min(count, lengths[dimension] - begin)
            part_offsets = list(offsets)
            part_offsets[dimension] += begin
            part_lengths = list(lengths)
            part_lengths[dimension] = rows
            yield from self.cut(part_offsets, part_lengths, first + begin * stride)

    def _span(self, lengths: Sequence[int]) -> int:
        """Elements from the first to the last of a region of this shape, both included."""
        return 1 + sum((length - 1) * stride for length, stride in zip(lengths, self.strides, strict=True))

    def _run(self, lengths: Sequence[int]) -> int:
        """Elements that follow each other without a gap, for a region of this shape."""
        run = 1
        for length, stride in zip(reversed(lengths), reversed(self.strides), strict=True):
            if length > 1 and stride != run:
                break
            run *= length
        return run
