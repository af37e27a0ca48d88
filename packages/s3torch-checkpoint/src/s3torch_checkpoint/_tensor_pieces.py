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


def settle(tensor: torch.Tensor) -> None:
    """Wait until what was copied to a tensor is there for every stream; on the CPU it is."""
    if tensor.is_cuda:
        torch.cuda.current_stream(tensor.device).synchronize()


def elements_of(data: torch.Tensor, dtype: torch.dtype, block: Block) -> torch.Tensor:
    """See the elements of a block in its bytes.

    Args:
        data: The bytes of the block, a uint8 tensor on any device.
        dtype: dtype of the elements.
        block: The block.
    """
    return data.view(dtype).as_strided(block.lengths, block.strides)


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
        """A buffer, pinned where the destination is a CUDA tensor: from there its copy runs at the bus's full speed."""
        is_cuda = self._target.is_cuda
        self._staging = torch.empty(self.memory_bytes, dtype=torch.uint8, device="cpu", pin_memory=is_cuda)
        return tensor_buffer(self._staging)

    def finish(self) -> None:
        """Copy the elements to the destination; they are there when this returns, and the buffer is free."""
        assert self._staging is not None
        staging, self._staging = self._staging, None
        if not self._target.is_cuda:
            self._target.copy_(elements_of(staging, self._dtype, self._block))
        else:
            if not self._is_copied_as_it_is():
                # torch would pick the elements out on the CPU, into memory that is not pinned.
                staging = staging.to(self._target.device, non_blocking=True)
            self._target.copy_(elements_of(staging, self._dtype, self._block), non_blocking=True)
            # The next pieces are being fetched meanwhile by another thread, so that to wait costs nothing. Otherwise a
            # device that is busy would keep ever more pinned buffers waiting for their turn.
            settle(self._target)
        self._on_done()

    def _is_copied_as_it_is(self) -> bool:
        return (
            self._target.dtype == self._dtype
            and self._target.is_contiguous()
            and self._block.is_dense(self._dtype.itemsize)
        )
