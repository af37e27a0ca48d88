"""Loads a `torch.save` archive with all its tensors' bytes fetched at once, straight into their storages.

`torch.load` reads one storage after the other, and between two of them the network idles. Here it reads from a file
that answers every read of a storage at once, without filling the memory, and notes the address; when the state is
built, all storages are filled by parallel ranges. That is right only when nothing looks at the bytes before, and when
each address is that of a storage which the result holds, and each such storage is noted whole; all of it is checked,
and where it does not hold the caller loads as usual.
"""

from __future__ import annotations

import ctypes
import io
import sys
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from s3core import S3Exception

from ._archive_directory import LOCAL_HEADER_BYTES, Member
from ._archive_reader import ArchiveReader
from ._fetch import Piece
from ._fetch_plan import Want
from ._memory import storage_buffer

KiB = 2**10
MiB = 2**20
# All of a shorter archive is in the answer to the first request. Of one of 500 kB the bytes come after 104 ms so, and
# after 177 in order (at 30 ms and 90 MB/s per connection).
PLANNED_BYTES = 128 * KiB
_WINDOW_BYTES = 128 * MiB
# Shorter members share a request with their header, and with their neighbours.
_ALONE_BYTES = 8 * MiB
_PLAIN_TYPES = (str, bytes, int, float, complex, bool, type(None), torch.Size, torch.dtype, torch.device)
_CONTAINERS = (dict, OrderedDict, list, tuple, set, frozenset)
_TENSORS = (torch.Tensor, torch.nn.Parameter)


class NotPlannable(Exception):
    """This archive, or this way of loading it, needs the bytes in order."""


@dataclass(frozen=True, slots=True)
class _Hole:
    """Memory that `torch.load` takes for filled."""

    address: int
    start: int
    length: int


class _DeferringReader(io.RawIOBase):
    """Answers reads of storages without their bytes, and notes where these belong; reads anything else.

    Args:
        file: The archive.
    """

    def __init__(self, file: ArchiveReader) -> None:
        super().__init__()
        self._file = file
        self.holes: list[_Hole] = []
        members = file.members()
        if members is None or not _is_native(file, members):
            raise NotPlannable
        self.storages = [member for member in members if member.is_storage]
        self._headers = [member.header for member in self.storages]

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """See `ArchiveReader`."""
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """See `ArchiveReader`."""
        return self._file.seek(offset, whence)

    def readinto(self, buffer: Any, /) -> int:
        """Note a read of a storage; make up the local header before it; read anything else."""
        view = memoryview(buffer).cast("B")
        position, member = self.tell(), self._member()
        if member is not None and position == member.header and len(view) == LOCAL_HEADER_BYTES:
            view[:] = member.local_header
        elif member is not None and len(view) and member.start <= position and position + len(view) <= member.end:
            address = ctypes.addressof(ctypes.c_char.from_buffer(view))
            self.holes.append(_Hole(address, position, len(view)))
        else:  # also the search for the end of a short archive, which begins within its last storage
            return self._file.readinto(buffer)
        self.seek(position + len(view))
        return len(view)

    def read(self, size: int | None = -1, /) -> bytes:
        """Read what is no storage; `torch.load` reads those with `readinto`."""
        member = self._member()
        if member is not None and self.tell() >= member.start:
            raise NotPlannable
        return self._file.read(size)

    def _member(self) -> Member | None:
        index = bisect_right(self._headers, self.tell()) - 1
        return self.storages[index] if index >= 0 and self.tell() < self.storages[index].end else None


def _is_native(file: ArchiveReader, members: list[Member]) -> bool:
    """Whether the storages are in this machine's byte order, so that `torch.load` leaves them as they are."""
    for member in members:
        if member.is_byte_order:
            file.seek(member.header)
            local_header = file.read(LOCAL_HEADER_BYTES)
            file.seek(member.start)
            order = file.read(member.end - member.start)
            file.seek(0)
            return member.is_told_by(local_header) and order == sys.byteorder.encode()
    return False


class _StoragePiece:
    """Bytes that go straight into a storage."""

    memory_bytes = 0

    def __init__(self, want: Want, buffer: memoryview) -> None:
        self.want = want
        self._buffer = buffer

    def open(self) -> memoryview:
        return self._buffer

    def finish(self) -> None: ...


class _HeaderPiece:
    """The local header of a member, to compare with what the directory let us expect."""

    memory_bytes = LOCAL_HEADER_BYTES

    def __init__(self, want: Want, member: Member) -> None:
        self.want = want
        self._member = member
        self._data = bytearray(LOCAL_HEADER_BYTES)

    def open(self) -> memoryview:
        return memoryview(self._data)

    def finish(self) -> None:
        if not self._member.is_told_by(bytes(self._data)):
            raise NotPlannable


def is_plannable(map_location: Any) -> bool:
    """Whether `torch.load` with `weights_only=True` builds a state without a look at the tensors' bytes.

    Args:
        map_location: As for `torch.load`; the bytes of tensors for another device are copied there at once.
    """
    on_cpu = map_location == "cpu" or (isinstance(map_location, torch.device) and map_location.type == "cpu")
    list_globals: Callable[[], list[Any]] | None = getattr(torch.serialization, "get_safe_globals", None)
    if not (map_location is None or on_cpu) or list_globals is None:
        return False
    # What a user allows may do anything with the bytes.
    return all(_is_allowed_by_torch(entry[0] if isinstance(entry, tuple) else entry) for entry in list_globals())


def _is_allowed_by_torch(entry: Any) -> bool:
    """Whether torch itself allows it in archives: its own types and, since torch 2.14, errors with their tracebacks."""
    module = str(getattr(entry, "__module__", ""))
    is_error = module == "builtins" and isinstance(entry, type) and issubclass(entry, BaseException)
    return module.startswith("torch.") or module == "traceback" or is_error


def load_planned(file: ArchiveReader, map_location: Any) -> Any:
    """Load an archive of tensors and plain containers with parallel ranges straight into the tensors' storages.

    Args:
        file: The archive, at its start.
        map_location: None or the CPU.

    Returns:
        What was saved.

    Raises:
        NotPlannable: It must be loaded in order instead; the file is at any position.
        S3Exception: It could not be read to its end, or was replaced meanwhile.
    """
    deferring = _DeferringReader(file)
    try:
        loaded = torch.load(deferring, map_location=map_location, weights_only=True, mmap=False)  # type: ignore[arg-type]
    except S3Exception:
        raise
    except Exception as error:
        # What looks at bytes that are not there yet may fail in any way, and the archive reader in C++ gives
        # NotPlannable another type; an error of the archive's own comes again in the ordered read.
        raise NotPlannable from error
    storages = _storages(loaded)
    addresses = sorted(storages)
    unfilled = {address: storage.nbytes() for address, storage in storages.items()}
    pieces: list[Piece] = [
        _HeaderPiece(Want(file.key, member.header, member.header + LOCAL_HEADER_BYTES), member)
        for member in deferring.storages
    ]
    for hole in deferring.holes:
        index = bisect_right(addresses, hole.address) - 1
        storage = storages[addresses[index]] if index >= 0 else None
        offset = hole.address - addresses[index] if index >= 0 else 0
        if storage is None or offset + hole.length > storage.nbytes():
            raise NotPlannable
        unfilled[addresses[index]] -= hole.length
        buffer = storage_buffer(storage)[offset : offset + hole.length]
        pieces.append(_StoragePiece(Want(file.key, hole.start, hole.start + hole.length), buffer))
    if any(unfilled.values()):  # made from the bytes of another one, or read without being noted
        raise NotPlannable
    file.fetch(pieces, window_bytes=_WINDOW_BYTES, alone_bytes=_ALONE_BYTES)
    return loaded


def _storages(loaded: object) -> dict[int, torch.UntypedStorage]:
    """The CPU storages of all tensors of a state, by address; refuses all but tensors and plain values."""
    storages: dict[int, torch.UntypedStorage] = {}
    todo = [loaded]
    seen: set[int] = set()
    while todo:
        value = todo.pop()
        kind = type(value)
        if kind in _PLAIN_TYPES:
            continue
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor) and kind in _TENSORS:
            if value.layout != torch.strided or value.is_quantized or value.device.type not in ("cpu", "meta"):
                raise NotPlannable
            todo.extend(vars(value).values())
            if value.device.type == "cpu":
                storage = value.untyped_storage()
                storages[storage.data_ptr()] = storage
        elif kind in _CONTAINERS:
            if isinstance(value, dict):
                todo.extend(value)
                todo.extend(value.values())
                todo.extend(vars(value).values() if kind is OrderedDict else ())
            else:
                todo.extend(value)  # type: ignore[arg-type]  # one of _CONTAINERS
        else:
            raise NotPlannable
    return storages
