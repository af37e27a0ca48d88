"""Turns the items of a load plan into byte ranges, and their bytes into tensors and objects."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, cast

import torch
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlanner, ReadItem

from .._errors import CorruptCheckpointError
from .._fetch_plan import Want
from .._memory import is_plain, tensor_buffer
from .._region import cut_region
from .._tensor_pieces import BlockPiece, PlainPiece, settle
from ._payload import Payload, payload_of
from ._sharing import BLOCK_BYTES

_DECODE_BYTES = 2**20

Decode = Callable[[Sequence[str], IO[bytes]], IO[bytes]]


class _MemoryFile(io.RawIOBase):
    """A file over memory that stays where it is; `io.BytesIO` would copy it."""

    def __init__(self, data: memoryview) -> None:
        super().__init__()
        self._data = data
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._position = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._data)}[whence] + offset
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        part = self._data[self._position :][: len(view)]
        view[: len(part)] = part
        self._position += len(part)
        return len(part)


class WholePiece:
    """A whole stored item: a pickled object, or a tensor of which only the stored form is known."""

    def __init__(self, want: Want, use: Callable[[memoryview], None]) -> None:
        self.want = want
        self.memory_bytes = want.end - want.start
        self._use = use
        self._data: memoryview | None = None

    def open(self) -> memoryview:
        """A buffer for the item as it is stored."""
        self._data = tensor_buffer(torch.empty(self.memory_bytes, dtype=torch.uint8))  # not zeroed, as a bytearray is
        return self._data

    def finish(self) -> None:
        """Decode the item."""
        assert self._data is not None
        data, self._data = self._data, None
        self._use(data)


LoadPiece = PlainPiece | BlockPiece | WholePiece


@dataclass(frozen=True, slots=True)
class ItemReader:
    """Makes the pieces of load items.

    Args:
        planner: Knows the destinations; called in the thread of the load alone.
        decode: Undoes torch's stream transforms, named by their descriptors.
        uri_of: Spells the URI of an object of the checkpoint, for messages.
    """

    planner: LoadPlanner
    decode: Decode
    uri_of: Callable[[str], str]

    def pieces(self, item: ReadItem, info: Any, key: str, *, in_blocks: bool = False) -> Iterator[LoadPiece]:
        """Give what must be fetched for one item.

        Args:
            item: The item.
            info: torch's record of where it is stored.
            key: Key of the object.
            in_blocks: Cut the item as `block_sizes` does, wherever its destination is.

        Yields:
            The pieces; none for a tensor without elements, which is done at once.
        """
        payload = payload_of(info)
        if item.type == LoadItemType.BYTE_IO:
            yield self._bytes_piece(item, info, key)
        elif payload is not None and not _descriptors(info):
            yield from self._payload_pieces(item, payload, key, info, in_blocks)
        else:
            yield self._tensor_piece(item, info, key)

    def _bytes_piece(self, item: ReadItem, info: Any, key: str) -> WholePiece:
        def use(data: memoryview) -> None:
            stream = self._decoded(info, data)
            self.planner.load_bytes(item, stream if isinstance(stream, io.BytesIO) else io.BytesIO(data))

        return WholePiece(Want(key, info.offset, info.offset + info.length), use)

    def _tensor_piece(self, item: ReadItem, info: Any, key: str) -> WholePiece:
        def use(data: memoryview) -> None:
            tensor = torch.load(self._decoded(info, data), map_location="cpu", weights_only=True)  # type: ignore[arg-type]
            for dimension, (offset, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                if (offset, length) != (0, tensor.size(dimension)):
                    tensor = tensor.narrow(dimension, offset, length)
            target = self._target(item, info)
            target.copy_(tensor)
            settle(target)
            self.planner.commit_tensor(item, target)

        return WholePiece(Want(key, info.offset, info.offset + info.length), use)

    def _payload_pieces(
        self, item: ReadItem, payload: Payload, key: str, info: Any, in_blocks: bool
    ) -> Iterator[LoadPiece]:
        target = self._target(item, info)
        itemsize = payload.dtype.itemsize
        in_place = is_plain(target) and target.dtype == payload.dtype
        try:
            blocks = list(
                cut_region(
                    payload.shape,
                    tuple(item.storage_offsets),
                    tuple(item.lengths),
                    itemsize,
                    max_block_bytes=None if in_place and not in_blocks else BLOCK_BYTES,
                )
            )
        except ValueError as error:
            raise CorruptCheckpointError(
                f"{item.storage_index.fqn!r} in {self.uri_of(info.relative_path)}: {error}"
            ) from error
        left = len(blocks)

        def block_done() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self.planner.commit_tensor(item, target)

        if not blocks:
            self.planner.commit_tensor(item, target)
        for block in blocks:
            want = Want(key, payload.start + block.start, payload.start + block.end)
            part = target
            for dimension, (offset, length) in enumerate(zip(block.offsets, block.lengths, strict=True)):
                if length != target.size(dimension):
                    part = part.narrow(dimension, offset, length)
            if in_place and block.is_dense(itemsize) and part.is_contiguous():
                yield PlainPiece(want, part, block_done)
            else:
                yield BlockPiece(want, block, payload.dtype, part, block_done)

    def _decoded(self, info: Any, data: memoryview) -> io.BytesIO | _MemoryFile:
        """The item as it was before its transforms."""
        stored = _MemoryFile(data)
        descriptors = _descriptors(info)
        if not descriptors:
            return stored
        stream = self.decode(descriptors, cast("IO[bytes]", stored))
        decoded = io.BytesIO()
        while True:
            position = stored.tell()
            decoded.write(chunk := stream.read(_DECODE_BYTES))
            # torch's pyzstd transform gives nothing as long as it has not seen a whole block.
            if not chunk and stored.tell() == position:
                break
        decoded.seek(0)
        return decoded

    def _target(self, item: ReadItem, info: Any) -> torch.Tensor:
        target = self.planner.resolve_tensor(item).detach()
        if tuple(target.shape) != tuple(item.lengths):
            raise CorruptCheckpointError(
                f"{item.storage_index.fqn!r} in {self.uri_of(info.relative_path)} has {tuple(item.lengths)} elements "
                f"to load into a destination of shape {tuple(target.shape)}"
            )
        return target


def needed_bytes(item: ReadItem, info: Any) -> int:
    """How many stored bytes an item needs: all that is stored of it, or only the rows where those can be found."""
    payload = payload_of(info)
    if item.type == LoadItemType.BYTE_IO or payload is None or tuple(item.lengths) == payload.shape:
        return int(info.length)
    return math.prod(item.lengths) * payload.dtype.itemsize


def is_opaque_tensor(item: ReadItem, info: Any) -> bool:
    """Whether an item is a tensor of which only the stored form is known."""
    return item.type != LoadItemType.BYTE_IO and payload_of(info) is None and not _descriptors(info)


def _descriptors(info: Any) -> Sequence[str]:
    return getattr(info, "transform_descriptors", None) or ()
