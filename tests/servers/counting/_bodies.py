"""Where the body of a request goes while it arrives, and how it is unwrapped on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from servers.counting._checksums import BodySums
from servers.counting._errors import S3Error
from servers.counting._store import Piece, PieceWriter

_MOST_LINE_BYTES = 4096


class Body(Protocol):
    """Takes the bytes of one request's body."""

    def write(self, data: bytes | memoryview) -> None:
        """Take more bytes."""

    def discard(self) -> None:
        """Forget them: the request failed."""


class MemoryBody:
    """A body to look into: the XML of a request."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes | memoryview) -> None:
        """Take more bytes."""
        self.data += data

    def discard(self) -> None:
        """Nothing to do."""


class PieceBody:
    """A body to keep: the bytes of an object or a part.

    Args:
        writer: Where they go.
        sums: Their checksums; None for bytes that are not checked.
    """

    def __init__(self, writer: PieceWriter, sums: BodySums | None = None) -> None:
        self._writer = writer
        self._sums = sums
        self.write = writer.write if sums is None else self._write_and_sum

    def finish(self, headers: Mapping[str, str]) -> Piece:
        """The bytes, complete.

        Args:
            headers: Of the request, and its trailers.

        Raises:
            S3Error: They are not those of the checksum there.
        """
        piece = self._writer.finish()
        return piece if self._sums is None else replace(piece, checksums=self._sums.check(headers))

    def discard(self) -> None:
        """Remove what has arrived."""
        self._writer.discard()

    def _write_and_sum(self, data: bytes | memoryview) -> None:
        self._writer.write(data)
        assert self._sums is not None
        self._sums.update(data)


class DroppedBody:
    """A body to count: uploads that cost the server next to nothing; what is read back is zeros."""

    def __init__(self, etag: str) -> None:
        self._etag = etag
        self._size = 0

    def write(self, data: bytes | memoryview) -> None:
        """Count more bytes."""
        self._size += len(data)

    def finish(self, headers: Mapping[str, str]) -> Piece:
        """As many zeros."""
        return Piece("", self._size, self._etag)

    def discard(self) -> None:
        """Nothing to do."""


class ChunkDecoder:
    """Takes the chunks out of `Transfer-Encoding: chunked` and of `Content-Encoding: aws-chunked`, which look the same.

    See RFC 9112, section 7.1, and
    https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming-trailers.html.
    """

    def __init__(self, write: Callable[[bytes | memoryview], object]) -> None:
        self._write = write
        self._pending = b""
        self._left_in_chunk = 0
        self._is_in_trailers = False
        self.is_done = False
        self.size = 0
        self.trailers: dict[str, str] = {}

    def feed(self, data: bytes | memoryview) -> memoryview:
        """Take more bytes, of which none is copied but those of lines; return those after the end.

        Raises:
            S3Error: When they are not chunks.
        """
        left = memoryview(self._pending + data if self._pending else data)
        self._pending = b""
        while left and not self.is_done:
            if self._left_in_chunk:
                chunk = left[: self._left_in_chunk]
                self._write(chunk)
                self.size += len(chunk)
                self._left_in_chunk -= len(chunk)
                left = left[len(chunk) :]
                continue
            start = bytes(left[:_MOST_LINE_BYTES])
            end = start.find(b"\r\n")
            if end >= 0:
                self._read_line(start[:end])
                left = left[end + 2 :]
            elif len(start) < _MOST_LINE_BYTES:
                self._pending = start
                return left[:0]
            else:
                raise S3Error(400, "IncompleteBody", f"not a line between chunks: {start[:80]!r}")
        return left

    def _read_line(self, line: bytes) -> None:
        if self._is_in_trailers:
            name, _, value = line.decode("latin-1").partition(":")
            if name:
                self.trailers[name.lower()] = value.strip()
            self.is_done = not name
        elif line:  # it is empty where a chunk's data ends
            try:
                self._left_in_chunk = int(line.partition(b";")[0], 16)
            except ValueError:
                raise S3Error(400, "IncompleteBody", f"not the size of a chunk: {line[:80]!r}") from None
            self._is_in_trailers = self._left_in_chunk == 0
