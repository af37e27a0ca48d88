"""The default reader: fetches the object once from its start, and holds what it fetched."""

from __future__ import annotations

import mmap
import sys

from s3core import S3Exception
from s3torch_datasets._byte_stream import ByteStream, as_byte_stream, as_bytes_view, object_size_bytes
from s3torch_datasets._fork_count import ForkCount
from s3torch_datasets._positioned_reader import PositionedReader
from s3torch_datasets._protocol import GetObjectInfo, GetStream

_PARALLEL_FROM_BYTES = 2**20
_MAPPED_FROM_BYTES = 2**20


class SequentialS3Reader(PositionedReader):
    """Reads an object from its start, each byte fetched once and held, so that seeking back is free.

    Best for reading whole objects. It holds the object once: `read()` of a fresh reader returns the very bytes that it
    holds. A `readinto` of the whole object fills the caller's buffer in place and holds nothing; reading the same bytes
    again then fetches them again.

    Args:
        bucket: Bucket of the object.
        key: Exact key of the object.
        get_object_info: Returns the object's size and ETag.
        get_stream: Opens a range of the object.
    """

    def __init__(self, bucket: str, key: str, get_object_info: GetObjectInfo, get_stream: GetStream) -> None:
        super().__init__(bucket, key, get_object_info, get_stream)
        self._held: bytes | bytearray | mmap.mmap = b""
        self._filled = 0
        self._stream: ByteStream | None = None
        self._stream_forks = 0

    def _fetch(self, position: int, size: int | None) -> bytes:
        if self._is_behind_end(position):
            return b""
        if size is None and self._filled == 0 and position == 0:
            return self._fetch_whole()
        end = None if size is None else position + size
        self._fill(end)
        return self._slice(position, self._filled if end is None else end)

    def _fetch_whole(self) -> bytes:
        stream = self._stream_at_filled()
        try:
            data = stream.read_all()
        except BaseException:
            self._drop_stream()
            raise
        self._drop_stream()
        self._held = data
        self._size = self._filled = len(data)
        return data

    def _fetch_into(self, position: int, view: memoryview) -> int:
        if self._is_behind_end(position):
            return 0
        if self._filled == 0 and position == 0 and len(view) >= _PARALLEL_FROM_BYTES:
            stream = self._stream_at_filled()
            if self._size is None:
                self._size = object_size_bytes(stream)
            if self._size is not None and len(view) >= self._size:
                try:
                    filled = stream.read_into(view)
                finally:
                    self._drop_stream()
                if filled < self._size:
                    raise self._ended_early(filled)
                return filled
        self._fill(position + len(view))
        end = min(position + len(view), self._filled)
        if end <= position:
            return 0
        with memoryview(self._held) as held:
            view[: end - position] = held[position:end]
        return end - position

    def _fetch_some(self, position: int, size: int) -> bytes:
        if self._is_behind_end(position):
            return b""
        self._fill(position + 1)
        return self._slice(position, position + size)

    def _is_behind_end(self, position: int) -> bool:
        """Whether there is nothing at a position for certain: what a `readinto` did not hold is not fetched again."""
        return self._size is not None and position >= self._size

    def _slice(self, start: int, end: int) -> bytes:
        end = min(end, self._filled)
        if start >= end:
            return b""
        if start == 0 and end == len(self._held) and isinstance(self._held, bytes):
            return self._held
        with memoryview(self._held) as held:
            return bytes(held[start:end])

    def _fill(self, end: int | None) -> None:
        """Holds the object's bytes up to `end`, or all of them when it is None."""
        if self._filled == self._size or (end is not None and self._filled >= end):
            return
        stream = self._stream_at_filled()
        try:
            if self._size is None:
                self._size = object_size_bytes(stream)
            if self._size is None:
                self._grow(stream, end)
            else:
                self._fill_in_place(stream, self._size if end is None else min(end, self._size))
        except BaseException:
            self._drop_stream()
            raise
        if self._filled == self._size:
            self._drop_stream()

    def _grow(self, stream: ByteStream, end: int | None) -> None:
        held = self._held = self._held if isinstance(self._held, bytearray) else bytearray(self._held)
        del held[self._filled :]  # what an interruption left behind
        while end is None or self._filled < end:
            try:
                held += as_bytes_view(next(stream))
            except StopIteration:
                self._size = self._filled
                return
            self._filled = len(held)

    def _fill_in_place(self, stream: ByteStream, end: int) -> None:
        assert self._size is not None
        if len(self._held) < self._size:
            room = _make_room(self._size)
            room[: self._filled] = memoryview(self._held)[: self._filled]
            self._held = room
        with memoryview(self._held) as held:
            if end - self._filled >= _PARALLEL_FROM_BYTES:
                self._filled += stream.read_into(held[self._filled : end])
            else:
                self._fill_by_chunks(stream, held, end)
        if self._filled < end:
            raise self._ended_early(self._filled)

    def _fill_by_chunks(self, stream: ByteStream, held: memoryview, end: int) -> None:
        while self._filled < end:
            try:
                chunk = as_bytes_view(next(stream))
            except StopIteration:
                return
            if self._filled + len(chunk) > len(held):
                raise S3Exception(
                    f"{self._uri}: received more than the {len(held)} bytes that the object was said to have; "
                    "it may have been replaced while it was read, open it again"
                )
            held[self._filled : self._filled + len(chunk)] = chunk
            self._filled += len(chunk)

    def _ended_early(self, filled: int) -> S3Exception:
        return S3Exception(
            f"{self._uri}: the data ended after {filled} of {self._size} bytes; "
            "the object may have been replaced while it was read, open it again"
        )

    def _find_size(self) -> int:
        if self._stream is not None and self._stream_forks == ForkCount.now:
            size = object_size_bytes(self._stream)
            if size is not None:
                return size
        return super()._find_size()

    def _stream_at_filled(self) -> ByteStream:
        """Returns the open stream, or a new one after a fork, an error, or the first time."""
        if self._stream is None or self._stream_forks != ForkCount.now:
            self._stream = as_byte_stream(self._open(self._filled or None))
            self._stream_forks = ForkCount.now
        return self._stream

    def _drop_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None and self._stream_forks == ForkCount.now:
            stream.close()

    def _release(self) -> None:
        self._drop_stream()
        self._held = b""
        self._filled = 0


def _make_room(size: int) -> bytearray | mmap.mmap:
    """Room for a whole object of which maybe little will be read: a page takes memory when it is written to.

    A `bytearray` of that size would be cleared, and so take all of it at once.
    """
    if size < _MAPPED_FROM_BYTES:
        return bytearray(size)
    if sys.platform == "win32":
        return mmap.mmap(-1, size)
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # not shared with a forked child
