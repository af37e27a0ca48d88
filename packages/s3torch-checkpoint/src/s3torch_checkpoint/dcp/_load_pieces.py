"""Turns the items of a load plan into byte ranges, and their bytes into tensors and objects."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import IO, Any, cast

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlanner, ReadItem

from .._errors import CorruptCheckpointError
from .._fetch_plan import Want
from .._memory import is_plain, tensor_buffer
from .._region import Block, cut_region
from .._tensor_pieces import BlockPiece, PlainPiece, elements_of, settle
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
        # Not zeroed, as a bytearray is.
        self._data = tensor_buffer(torch.empty(self.memory_bytes, dtype=torch.uint8, device="cpu"))
        return self._data

    def finish(self) -> None:
        """Decode the item."""
        assert self._data is not None
        data, self._data = self._data, None
        self._use(data)


LoadPiece = PlainPiece | BlockPiece | WholePiece
# Where the elements of an item go: a tensor that is filled as its bytes come, or what takes all of them at once.
Destination = torch.Tensor | Callable[[torch.Tensor], None]


class ItemReader:
    """Makes the pieces of load items.

    Args:
        planner: Knows the destinations; called in the thread of the load alone.
        decode: Undoes torch's stream transforms, named by their descriptors.
        uri_of: Spells the URI of an object of the checkpoint, for messages.
    """

    def __init__(self, planner: LoadPlanner, decode: Decode, uri_of: Callable[[str], str]) -> None:
        self.planner = planner
        self._decode = decode
        self._uri_of = uri_of
        # A planner of another kind may give memory that it uses for the next tensor once it has committed this one.
        self._gives_the_state = all(
            getattr(getattr(planner, name), "__func__", None) is getattr(DefaultLoadPlanner, name)
            for name in ("resolve_tensor", "commit_tensor")
        )

    def destination(self, item: ReadItem, info: Any) -> Destination | None:
        """Where a tensor goes; None for what is no tensor.

        Args:
            item: The item.
            info: torch's record of where it is stored.
        """
        if item.type == LoadItemType.BYTE_IO:
            return None
        return self._target(item, info) if self._gives_the_state else partial(self.put, item, info)

    def put(self, item: ReadItem, info: Any, tensor: torch.Tensor) -> None:
        """Ask the planner for a tensor's place, fill it, and commit it.

        Args:
            item: The item.
            info: torch's record of where it is stored.
            tensor: What to fill it with.
        """
        self._fill(item, self._target(item, info), tensor)

    def pieces(
        self, item: ReadItem, info: Any, key: str, destination: Destination | None, *, in_blocks: bool = False
    ) -> Iterator[LoadPiece]:
        """Give what must be fetched for one item.

        Args:
            item: The item.
            info: torch's record of where it is stored.
            key: Key of the object.
            destination: Where it goes, if it is a tensor.
            in_blocks: Cut the item as `block_sizes` does, wherever its destination is.

        Yields:
            The pieces; none for a tensor without elements, which is done at once.
        """
        payload = payload_of(info)
        if destination is None:
            yield self._bytes_piece(item, info, key)
        elif payload is None or _descriptors(info):
            yield self._tensor_piece(item, info, key, destination)
        elif isinstance(destination, torch.Tensor):
            yield from self._pieces_in_place(item, payload, key, info, destination, in_blocks)
        else:
            yield from self._pieces_aside(item, payload, key, info, destination, in_blocks)

    def _bytes_piece(self, item: ReadItem, info: Any, key: str) -> WholePiece:
        def use(data: memoryview) -> None:
            stream = self._decoded(info, data)
            self.planner.load_bytes(item, stream if isinstance(stream, io.BytesIO) else io.BytesIO(data))

        return WholePiece(Want(key, info.offset, info.offset + info.length), use)

    def _tensor_piece(self, item: ReadItem, info: Any, key: str, destination: Destination) -> WholePiece:
        def use(data: memoryview) -> None:
            tensor = torch.load(self._decoded(info, data), map_location="cpu", weights_only=True)  # type: ignore[arg-type]
            for dimension, (offset, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                if (offset, length) != (0, tensor.size(dimension)):
                    tensor = tensor.narrow(dimension, offset, length)
            if isinstance(destination, torch.Tensor):
                self._fill(item, destination, tensor)
            else:
                destination(tensor)

        return WholePiece(Want(key, info.offset, info.offset + info.length), use)

    def _pieces_in_place(
        self, item: ReadItem, payload: Payload, key: str, info: Any, target: torch.Tensor, in_blocks: bool
    ) -> Iterator[LoadPiece]:
        itemsize = payload.dtype.itemsize
        in_place = is_plain(target) and target.dtype == payload.dtype
        blocks = self._blocks(item, payload, info, is_cut=in_blocks or not in_place)
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
            part = _part(target, block)
            if in_place and block.is_dense(itemsize) and part.is_contiguous():
                yield PlainPiece(want, part, block_done)
            else:
                yield BlockPiece(want, block, payload.dtype, part, block_done)

    def _pieces_aside(
        self,
        item: ReadItem,
        payload: Payload,
        key: str,
        info: Any,
        take: Callable[[torch.Tensor], None],
        in_blocks: bool,
    ) -> Iterator[LoadPiece]:
        blocks = self._blocks(item, payload, info, is_cut=in_blocks)
        left = len(blocks)
        whole: torch.Tensor | None = None

        def block_came(block: Block, data: memoryview) -> None:
            nonlocal left, whole
            elements = elements_of(torch.frombuffer(data, dtype=torch.uint8), payload.dtype, block)
            left -= 1
            if len(blocks) > 1:
                if whole is None:
                    whole = torch.empty(item.lengths, dtype=payload.dtype, device="cpu")
                _part(whole, block).copy_(elements)
                elements = whole
            if left == 0:
                whole = None
                take(elements)

        if not blocks:
            take(torch.empty(item.lengths, dtype=payload.dtype, device="cpu"))
        for block in blocks:
            want = Want(key, payload.start + block.start, payload.start + block.end)
            yield WholePiece(want, partial(block_came, block))

    def _blocks(self, item: ReadItem, payload: Payload, info: Any, *, is_cut: bool) -> list[Block]:
        try:
            return list(
                cut_region(
                    payload.shape,
                    tuple(item.storage_offsets),
                    tuple(item.lengths),
                    payload.dtype.itemsize,
                    max_block_bytes=BLOCK_BYTES if is_cut else None,
                )
            )
        except ValueError as error:
            raise CorruptCheckpointError(
                f"{item.storage_index.fqn!r} in {self._uri_of(info.relative_path)}: {error}"
            ) from error

    def _fill(self, item: ReadItem, target: torch.Tensor, tensor: torch.Tensor) -> None:
        target.copy_(tensor)
        settle(target)
        self.planner.commit_tensor(item, target)

    def _decoded(self, info: Any, data: memoryview) -> io.BytesIO | _MemoryFile:
        """The item as it was before its transforms."""
        stored = _MemoryFile(data)
        descriptors = _descriptors(info)
        if not descriptors:
            return stored
        stream = self._decode(descriptors, cast("IO[bytes]", stored))
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
                f"{item.storage_index.fqn!r} in {self._uri_of(info.relative_path)} has {tuple(item.lengths)} elements "
                f"to load into a destination of shape {tuple(target.shape)}"
            )
        return target


def _part(tensor: torch.Tensor, block: Block) -> torch.Tensor:
    """The part of a tensor, which is a whole region, that one block of it fills."""
    for dimension, (offset, length) in enumerate(zip(block.offsets, block.lengths, strict=True)):
        if length != tensor.size(dimension):
            tensor = tensor.narrow(dimension, offset, length)
    return tensor


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
