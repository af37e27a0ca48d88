"""Streams of objects in a disk cache, and of objects on their way into it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from typing_extensions import Buffer

from s3core import ObjectInfo
from s3torch_datasets._disk_cache import CacheFile

_CHUNK_SIZE_BYTES = 2**20
_MAX_READ_BYTES = 2**30  # Linux reads no more than about 2 GiB at a time


class FileStream:
    """Reads an object, or a range of it, from its file.

    Args:
        descriptor: Of the file; closed with the stream.
        info: The object.
        start: First byte.
        end: One past the last byte.
    """

    def __init__(self, descriptor: int, info: ObjectInfo, start: int | None, end: int | None) -> None:
        self._descriptor = descriptor
        self._info = info
        self._end = info.size if end is None else min(end, info.size)
        self._position = start or 0

    @property
    def object_info(self) -> ObjectInfo:
        """The object."""
        return self._info

    def prefetch(self) -> None:
        """Does nothing: the bytes are here."""

    def read_into(self, buffer: Buffer) -> int:
        """Fills a buffer; short only at the end."""
        with memoryview(buffer) as whole, whole.cast("B") as view:
            wanted = max(0, min(len(view), self._end - self._position))
            filled = 0
            while filled < wanted:
                step = min(wanted, filled + _MAX_READ_BYTES)
                count = os.preadv(self._descriptor, [view[filled:step]], self._position + filled)
                if not count:
                    raise OSError(f"the cached file of {self._info.key} was cut short; remove the cache folder")
                filled += count
        self._position += filled
        return filled

    def read_all(self) -> bytes:
        """Returns the rest."""
        wanted = max(0, self._end - self._position)
        if wanted <= _MAX_READ_BYTES:
            data = os.pread(self._descriptor, wanted, self._position)
            self._position += len(data)
            if len(data) == wanted:
                return data
            self._position -= len(data)
        room = bytearray(wanted)
        self.read_into(room)
        return bytes(room)

    def close(self) -> None:
        """Closes the file."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __iter__(self) -> Iterator[Buffer]:
        return self

    def __next__(self) -> Buffer:
        wanted = min(_CHUNK_SIZE_BYTES, self._end - self._position)
        data = os.pread(self._descriptor, wanted, self._position) if wanted > 0 else b""
        if not data:
            raise StopIteration
        self._position += len(data)
        return data

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            self.close()


class CachingStream:
    """Passes a stream over a whole object on, and writes what passes to a file of the cache.

    Args:
        stream: An `s3core.GetObjectStream` from the object's first byte.
        file: Where to write; it is given up when the stream is closed before its end.
    """

    def __init__(self, stream: Any, file: CacheFile) -> None:
        self._stream = stream
        self._file = file

    @property
    def object_info(self) -> ObjectInfo:
        """The object."""
        info: ObjectInfo = self._stream.object_info
        return info

    def prefetch(self) -> None:
        """Sends the first request."""
        self._stream.prefetch()

    def read_into(self, buffer: Buffer) -> int:
        """Fills a buffer; short only at the end."""
        filled: int = self._stream.read_into(buffer)
        with memoryview(buffer) as whole:
            self._file.write(whole.cast("B")[:filled])
        return filled

    def read_all(self) -> bytes:
        """Returns the rest."""
        data: bytes = self._stream.read_all()
        self._file.write(data)
        return data

    def close(self) -> None:
        """Closes the stream."""
        self._stream.close()
        self._file.discard()

    def __iter__(self) -> Iterator[Buffer]:
        return self

    def __next__(self) -> Buffer:
        chunk: Buffer = next(self._stream)
        self._file.write(chunk)
        return chunk
