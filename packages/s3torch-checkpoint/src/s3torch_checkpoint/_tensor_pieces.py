"""Byte ranges that become elements of tensors: in place, or through a buffer to another device, dtype or stride."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ._fetch_plan import Want
from ._memory import tensor_buffer
from ._region import Block


class PlainPiece:
    """Bytes that are exactly what a contiguous CPU tensor's memory shall hold."""

    def __init__(self, want: Want, target: torch.Tensor, on_done: Callable[[], None]) -> None:
        self.want = want
        self.memory_bytes = 0
        self._target = target
        self._on_done = on_done

    def open(self) -> memoryview:
        """The memory of the destination itself."""
        return tensor_buffer(self._target)

    def finish(self) -> None:
        """Say that the destination is filled."""
        self._on_done()


class BlockPiece:
    """Bytes that hold a block of elements for a destination elsewhere: another device, dtype, or stride."""

    def __init__(
        self, want: Want, block: Block, dtype: torch.dtype, target: torch.Tensor, on_done: Callable[[], None]
    ) -> None:
        self.want = want
        self.memory_bytes = want.end - want.start
        self._block = block
        self._dtype = dtype
        self._target = target
        self._on_done = on_done
        self._staging: torch.Tensor | None = None

    def open(self) -> memoryview:
        """A buffer, pinned where the destination is a CUDA tensor, so that its copy overlaps the next fetch."""
        self._staging = torch.empty(
            self.memory_bytes, dtype=torch.uint8, pin_memory=self._target.is_cuda and torch.cuda.is_available()
        )
        return tensor_buffer(self._staging)

    def finish(self) -> None:
        """Copy the elements to the destination."""
        assert self._staging is not None
        elements = self._staging.view(self._dtype).as_strided(self._block.lengths, self._block.strides)
        # The allocator of pinned memory keeps the buffer until the copy has happened.
        self._target.copy_(elements, non_blocking=self._staging.is_pinned())
        self._staging = None
        self._on_done()
