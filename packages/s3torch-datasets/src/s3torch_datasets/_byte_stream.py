"""Any iterator of bytes-like chunks as one kind of stream, keeping the faster paths of those that have them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Protocol, cast

from typing_extensions import Buffer

_FAST_PATHS = ("read_into", "read_all", "close", "object_info")


class _SizedObject(Protocol):
    @property
    def size(self) -> int: ...


class ByteStream(Protocol):
    """What the readers use of a stream; `s3core.GetObjectStream` is one."""

    def __next__(self) -> Buffer: ...

    def read_into(self, buffer: memoryview, /) -> int: ...

    def read_all(self) -> bytes: ...

    def close(self) -> None: ...


def as_byte_stream(stream: Iterator[Buffer]) -> ByteStream:
    """Returns the stream itself where it offers `read_into` and `read_all`, and an adapter where it only iterates."""
    return cast(ByteStream, stream) if _is_fast(type(stream)) else _IteratedStream(stream)


@lru_cache(maxsize=64)
def _is_fast(kind: type) -> bool:
    return all(hasattr(kind, name) for name in _FAST_PATHS)


def object_size_bytes(stream: ByteStream) -> int | None:
    """Returns the size of the whole object that the stream is of, or None where the stream cannot tell.

    It may wait for the first answer of the server.
    """
    if isinstance(stream, _IteratedStream):
        return None
    return cast(_SizedObject, stream.object_info).size  # type: ignore[attr-defined]  # as_byte_stream checked it


def as_bytes_view(buffer: Buffer) -> memoryview:
    """Returns a one-dimensional view of single bytes over any contiguous buffer."""
    view = memoryview(buffer)
    if view.format == "B" and view.ndim == 1:
        return view
    if view.nbytes == 0:  # memoryview refuses to cast a shape with a zero in it
        return memoryview(b"")
    return view.cast("B")


class _IteratedStream:
    """Gives an iterator of chunks the reading methods, keeping what a read left of its last chunk."""

    def __init__(self, chunks: Iterator[Buffer]) -> None:
        self._chunks = iter(chunks)
        self._left: memoryview | None = None

    def __next__(self) -> Buffer:
        if self._left is not None:
            left, self._left = self._left, None
            return left
        return next(self._chunks)

    def read_into(self, buffer: memoryview, /) -> int:
        filled = 0
        while filled < len(buffer):
            try:
                chunk = as_bytes_view(next(self))
            except StopIteration:
                break
            taken = min(len(chunk), len(buffer) - filled)
            buffer[filled : filled + taken] = chunk[:taken]
            filled += taken
            if taken < len(chunk):
                self._left = chunk[taken:]
        return filled

    def read_all(self) -> bytes:
        first = next(self, None)
        second = next(self, None)
        if second is None:
            return b"" if first is None else bytes(first)
        assert first is not None
        return b"".join((first, second, *self._remaining()))

    def close(self) -> None:
        self._left = None
        close = getattr(self._chunks, "close", None)
        if close is not None:
            close()

    def _remaining(self) -> Iterator[Buffer]:
        while (chunk := next(self, None)) is not None:
            yield chunk

    def __iter__(self) -> Iterator[Buffer]:
        return self
