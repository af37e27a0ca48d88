"""Finds where a tensor's raw bytes lie in an item that torch or s3torchconnector wrote, whose metadata do not tell.

torch itself says it: `torch.load` opens the item from its first and last bytes, and what it then asks for between them
is the storage. So a load of such a checkpoint, too, needs no memory but its destinations, and only the rows it needs.
"""

from __future__ import annotations

import copy
import io
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from .._fetch_plan import Want
from ._payload import note_payload

MiB = 2**20
# At either end: the members before the storage take about 1 kB; the search for the end of an archive begins with its
# last 4 KiB (`mz_zip_reader_locate_header_sig` in miniz, which torch reads with).
END_BYTES = 8 * 2**10
# Two more requests and half a millisecond for an item; from here on that is less than to copy it.
MIN_ITEM_BYTES = 2 * MiB


class _ItemEnds(io.RawIOBase):
    """An item of which only the ends are known; notes what is read between them, and leaves it as it is.

    Args:
        length: Length of the item in bytes.
        head: Its first bytes.
        tail: Its last bytes.
    """

    def __init__(self, length: int, head: memoryview, tail: memoryview) -> None:
        super().__init__()
        self._length = length
        self._head = head
        self._tail = tail
        self._position = 0
        self.holes: list[tuple[int, int]] = []

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move the position."""
        self._position = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence] + offset
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer from one of the ends, or note where its bytes would come from."""
        view = memoryview(buffer).cast("B")
        start = self._position
        length = max(0, min(len(view), self._length - start))
        tail_start = self._length - len(self._tail)
        if start + length <= len(self._head):
            view[:length] = self._head[start : start + length]
        elif start >= tail_start:
            view[:length] = self._tail[start - tail_start : start - tail_start + length]
        else:
            self.holes.append((start, length))
        self._position += length
        return length


class EndPiece:
    """One end of an item."""

    memory_bytes = END_BYTES

    def __init__(self, want: Want, on_data: Callable[[memoryview], None]) -> None:
        self.want = want
        self._on_data = on_data
        self._data = memoryview(b"")

    def open(self) -> memoryview:
        """A buffer for the bytes."""
        self._data = memoryview(bytearray(self.want.end - self.want.start))
        return self._data

    def finish(self) -> None:
        """Pass the bytes on."""
        self._on_data(self._data)


def end_pieces(storage_info: Any, key: str, on_found: Callable[[Any], None]) -> list[EndPiece]:
    """Give what must be fetched to learn where the bytes of a stored tensor lie.

    Args:
        storage_info: torch's record of the item, of at least `MIN_ITEM_BYTES`.
        key: Key of its object.
        on_found: Gets a copy of the record with the note that its writer could have made; not called for an item that
            has to be read as a whole.

    Returns:
        The two ends.
    """
    start, end = storage_info.offset, storage_info.offset + storage_info.length
    came: dict[int, memoryview] = {}

    def keep(data: memoryview, *, offset: int) -> None:
        came[offset] = data
        if len(came) == 2:
            noted = with_payload(storage_info, came[start], came[end - END_BYTES])
            if noted is not None:
                on_found(noted)

    return [
        EndPiece(Want(key, offset, offset + END_BYTES), partial(keep, offset=offset))
        for offset in (start, end - END_BYTES)
    ]


def with_payload(storage_info: Any, head: memoryview, tail: memoryview) -> Any | None:
    """Note in a copy of a stored tensor's record where its bytes lie.

    Args:
        storage_info: torch's record of the item.
        head: Its first bytes.
        tail: Its last bytes.

    Returns:
        The copy; None where the item has to be read as a whole.
    """
    file = _ItemEnds(storage_info.length, head, tail)
    try:
        if not _is_native(file):
            return None
        file.seek(0)
        file.holes.clear()
        # Its storage gets memory that nobody touches, and is let go of at once.
        tensor = torch.load(file, map_location="cpu", weights_only=True, mmap=False)  # type: ignore[arg-type]
    except Exception:  # not an archive, or one that cannot be understood without the rest: reading it all will tell
        return None
    if type(tensor) is not torch.Tensor or tensor.layout != torch.strided:
        return None
    if not [length for _, length in file.holes] == [tensor.nbytes] == [tensor.untyped_storage().nbytes()]:
        return None
    noted = copy.copy(storage_info)
    note_payload(noted, file.holes[0][0], tensor)
    return noted


def _is_native(file: _ItemEnds) -> bool:
    """Whether the storage is in this machine's byte order, so that `torch.load` leaves it as it is."""
    with zipfile.ZipFile(file) as archive:
        orders = [name for name in archive.namelist() if name.endswith("/byteorder")]
        return len(orders) == 1 and archive.read(orders[0]) == sys.byteorder.encode()
