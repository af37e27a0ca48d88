"""The reader for sparse reads: fetches the ranges that are asked for, through one small buffer."""

from __future__ import annotations

import operator
from typing import Any

from s3core import S3Exception
from s3torch_datasets._byte_stream import as_byte_stream, object_size_bytes
from s3torch_datasets._new_bytes import new_bytes
from s3torch_datasets._positioned_reader import PositionedReader
from s3torch_datasets._protocol import GetObjectInfo, GetStream

DEFAULT_BUFFER_SIZE_BYTES = 8 * 2**20


class RangedS3Reader(PositionedReader):
    """Reads the byte ranges that are asked for, and no others.

    A read smaller than the buffer loads the buffer from the position on, and later reads are served from it. A read of
    at least the buffer's size goes straight to S3, into the result. A read that starts in the buffer and goes on past
    it takes what the buffer has, and the rest by the same rule. The buffer is never larger than the object.

    Args:
        bucket: Bucket of the object.
        key: Exact key of the object.
        get_object_info: Returns the object's size and ETag.
        get_stream: Opens a range of the object.
        buffer_size: Size of the buffer in bytes; None means 8 MiB, 0 no buffer.

    Raises:
        ValueError: The buffer size is negative.
    """

    def __init__(
        self,
        bucket: str,
        key: str,
        get_object_info: GetObjectInfo,
        get_stream: GetStream,
        buffer_size: int | None = None,
    ) -> None:
        super().__init__(bucket, key, get_object_info, get_stream)
        self._buffer_size = check_buffer_size(buffer_size)
        self._buffer: bytes = b""
        self._buffer_start = 0

    def _fetch(self, position: int, size: int | None) -> bytes:
        if size is None:
            if self._size is None and position == 0:
                return self._read_range(0, None)
            size = self._object_size()
        if self._size is not None:
            size = min(size, self._size - position)
        if size <= 0:
            return b""
        head: bytes | memoryview = self._buffered(position, size)
        if len(head) == size:
            return bytes(head)
        start, end = position + len(head), position + size
        if end - start < self._buffer_size:
            head = bytes(head)
            self._load(start)
            return b"".join((head, self._buffered(start, end - start)))
        if head:
            return new_bytes(size, lambda view: self._fetch_into(position, view))
        return self._read_range(start, end)

    def _fetch_into(self, position: int, view: memoryview) -> int:
        if self._size is not None:
            view = view[: max(0, self._size - position)]
        head = self._buffered(position, len(view))
        filled = len(head)
        view[:filled] = head
        if filled == len(view):
            return filled
        start = position + filled
        if len(view) - filled >= self._buffer_size:
            return filled + self._read_range_into(start, view[filled:])
        self._load(start)
        tail = self._buffered(start, len(view) - filled)
        view[filled : filled + len(tail)] = tail
        return filled + len(tail)

    def _fetch_some(self, position: int, size: int) -> bytes:
        found = self._buffered(position, size)
        if found:
            return bytes(found)
        return self._fetch(position, size)

    def _buffered(self, position: int, size: int) -> memoryview:
        offset = position - self._buffer_start
        if offset < 0:
            return memoryview(b"")
        return memoryview(self._buffer)[offset : offset + size]

    def _load(self, start: int) -> None:
        self._buffer = b""  # before the next one is fetched, so that there is never more than one
        self._buffer = self._read_range(start, start + self._buffer_size)
        self._buffer_start = start

    def _read_range(self, start: int, end: int | None) -> bytes:
        if self._size is not None:
            end = self._size if end is None else min(end, self._size)
            if start >= end:
                return b""
        stream = as_byte_stream(self._open(start, end))
        try:
            data = stream.read_all()
            if end is not None and len(data) > end - start:
                data = data[: end - start]
            self._learn_size(object_size_bytes(stream), start, end, len(data))
        finally:
            stream.close()
        return data

    def _read_range_into(self, start: int, view: memoryview) -> int:
        stream = as_byte_stream(self._open(start, start + len(view)))
        try:
            filled = stream.read_into(view)
            self._learn_size(object_size_bytes(stream), start, start + len(view), filled)
        finally:
            stream.close()
        return filled

    def _learn_size(self, told: int | None, start: int, end: int | None, received: int) -> None:
        """Takes the size from the stream, and checks that the range was complete."""
        if self._size is None:
            if told is None:
                told = start + received if end is None else self._find_size()
            self._size = told
        expected = (self._size if end is None else min(end, self._size)) - start
        if received < expected:
            raise S3Exception(
                f"{self._uri}: received {received} of the {expected} bytes from offset {start}; "
                "the object may have been replaced while it was read, open it again"
            )

    def _release(self) -> None:
        self._buffer = b""
        self._buffer_start = 0

    def _settings(self) -> dict[str, Any]:
        return {"buffer_size": self._buffer_size}


def check_buffer_size(buffer_size: int | None) -> int:
    """Returns the buffer's size in bytes, the default for None."""
    if buffer_size is None:
        return DEFAULT_BUFFER_SIZE_BYTES
    size = operator.index(buffer_size)
    if size < 0:
        raise ValueError(f"buffer_size must be 0 (no buffer) or a positive number of bytes, got {size}")
    return size
