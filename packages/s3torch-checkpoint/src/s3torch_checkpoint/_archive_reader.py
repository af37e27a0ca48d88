"""The file that `torch.load` reads a checkpoint from: forward in one stream, the archive's directory from its end."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

from s3core import GetObjectStream, ObjectChangedError, ObjectInfo, S3Client, S3Exception

from ._archive_directory import Member, archive_members, directory_start
from ._fetch import Piece, fetch_pieces
from ._progress import TransferProgress

KiB = 2**10
MiB = 2**20

# What a load holds beside the model: enough requests in flight for 10 Gbit/s, little beside a model.
WINDOW_BYTES = 160 * MiB
_TAIL_BYTES = 64 * KiB
_MAX_TAIL_BYTES = 64 * MiB
# Reading over a gap costs less than a new stream up to about this length.
_SKIP_BYTES = 4 * MiB
# From here on the stream fills a buffer in place, with parallel ranges.
_IN_PLACE_BYTES = 64 * MiB
# torch keeps two small members between the last tensor and the directory.
_BEFORE_DIRECTORY_BYTES = 4 * KiB


class ArchiveReader(io.RawIOBase):
    """A seekable binary file over one object, made for the way in which `torch.load` reads.

    `torch.load` reads the directory at the end of the archive, then its members from the front to the back. The end is
    fetched once and kept; the rest comes through one stream whose window bounds the memory.

    Args:
        client: Client of the bucket.
        bucket: The bucket.
        key: The key.
        progress: Counts the bytes that are read.
    """

    def __init__(self, client: S3Client, bucket: str, key: str, progress: TransferProgress) -> None:
        super().__init__()
        self._client = client
        self._bucket = bucket
        self._key = key
        self._progress = progress
        self._stream: GetObjectStream = client.get_object(bucket, key)
        self._stream.window = WINDOW_BYTES
        self._chunks: Iterator[Any] = iter(self._stream)
        self._info: ObjectInfo = self._stream.object_info
        self._chunk = memoryview(b"")
        self._chunk_start = 0
        self._position = 0
        self._tail = memoryview(b"")
        self._tail_start = self._info.size

    @property
    def size(self) -> int:
        """Length of the object in bytes."""
        return self._info.size

    @property
    def key(self) -> str:
        """Key of the object."""
        return self._key

    def members(self) -> list[Member] | None:
        """Where the archive's members lie; None when this is no archive as `torch.save` writes it."""
        if self._tail_start == self.size:
            self._fetch_tail()
        start = directory_start(bytes(self._tail))
        if start is None or not self._tail_start <= start < self.size:
            return None
        return archive_members(bytes(self._tail[start - self._tail_start :]), start)

    def fetch(self, pieces: Sequence[Piece], *, window_bytes: int, alone_bytes: int) -> None:
        """Fetch pieces of the version that is read, all at once; the file is at its start then.

        Args:
            pieces: What to fetch, and where to.
            window_bytes: See `fetch_pieces`.
            alone_bytes: See there.
        """
        self._position = 0
        self._restart()  # What was on its way to be read next is not wanted; nothing is sent before that is.
        fetch_pieces(
            self._client,
            self._bucket,
            pieces,
            self._progress,
            allowance_bytes=self.size,
            window_bytes=window_bytes,
            alone_bytes=alone_bytes,
            etags={} if self._info.etag is None else {self._key: self._info.etag},
        )

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Offset of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move to an offset from the start, the position or the end; nothing is fetched."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot seek to {base + offset}, before the start of {self._uri}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer; short only at the end of the object."""
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), max(0, self.size - self._position))
        filled = 0
        while filled < wanted:
            filled += self._read_some(view[filled:wanted])
        return filled

    def read(self, size: int | None = -1, /) -> bytes:
        """Read `size` bytes, or all that is left."""
        left = max(0, self.size - self._position)
        buffer = bytearray(left if size is None or size < 0 else min(size, left))
        self.readinto(buffer)
        return bytes(buffer)

    def close(self) -> None:
        """End the transfers."""
        if not self.closed:
            self._chunk = self._tail = memoryview(b"")
            self._stream.close()
        super().close()

    @property
    def _uri(self) -> str:
        return f"s3://{self._bucket}/{self._key}"

    def _read_some(self, view: memoryview) -> int:
        if self._position >= self._tail_start:
            return self._copy(self._tail, self._tail_start, view)
        chunk_end = self._chunk_start + len(self._chunk)
        if self._chunk_start <= self._position < chunk_end:
            return self._copy(self._chunk, self._chunk_start, view)
        is_ahead = chunk_end <= self._position <= chunk_end + _SKIP_BYTES
        if not is_ahead and self._position >= self.size - _TAIL_BYTES and self._tail_start == self.size:
            self._fetch_tail()
            return 0
        if not is_ahead:
            self._restart()
        elif self._position == chunk_end and len(view) >= _IN_PLACE_BYTES:
            return self._fill_in_place(view)
        self._next_chunk()
        return 0

    def _copy(self, source: memoryview, start: int, view: memoryview) -> int:
        data = source[self._position - start :][: len(view)]
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _next_chunk(self) -> None:
        end = self._chunk_start + len(self._chunk)
        chunk = next(self._chunks, None)
        if chunk is None:
            raise S3Exception(f"{self._uri} ended at byte {end} of {self.size}; it cannot be read to its end")
        self._check_version(self._stream)
        self._chunk_start = end
        self._chunk = memoryview(chunk).cast("B")
        self._progress.advance(len(self._chunk))

    def _fill_in_place(self, view: memoryview) -> int:
        filled = self._stream.read_into(view)
        self._check_version(self._stream)
        self._position += filled
        self._chunk = memoryview(b"")
        self._chunk_start = self._position
        self._progress.advance(filled)
        if not filled:
            raise S3Exception(f"{self._uri} ended at byte {self._position} of {self.size}")
        return filled

    def _check_version(self, stream: GetObjectStream) -> None:
        """Refuse bytes of another version than the first; each stream itself is of one version."""
        if stream.object_info.etag != self._info.etag:
            raise ObjectChangedError(f"{self._uri} was replaced while it was loaded; load it again")

    def _restart(self) -> None:
        self._stream.close()
        self._stream = self._open(self._position, self.size)
        self._stream.window = WINDOW_BYTES
        self._chunks = iter(self._stream)
        self._chunk = memoryview(b"")
        self._chunk_start = self._position

    def _open(self, start: int, end: int) -> GetObjectStream:
        return self._client.get_object(self._bucket, self._key, object_info=self._info, start=start, end=end)

    def _fetch_tail(self) -> None:
        """Fetch the end of the object, and all of the archive's directory where that is longer."""
        start = max(0, self.size - _TAIL_BYTES)
        with self._open(start, self.size) as stream:
            tail = stream.read_all()
            self._check_version(stream)
        directory = directory_start(tail)
        if directory is not None:
            wanted = max(0, directory - _BEFORE_DIRECTORY_BYTES)
            if self.size - _MAX_TAIL_BYTES <= wanted < start:
                with self._open(wanted, start) as stream:
                    tail = stream.read_all() + tail
                    self._check_version(stream)
                start = wanted
        self._tail = memoryview(tail)
        self._tail_start = start
