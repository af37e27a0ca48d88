"""One tar archive to be read as samples, and kept in the disk cache on the way where there is one."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from s3torch_datasets._disk_cache import CacheFile
from s3torch_datasets._object_source import ObjectSource, ObjectStream
from s3torch_datasets._protocol import S3ReaderConstructorProtocol
from s3torch_datasets._reader_constructor import gives_own_bytes
from s3torch_datasets._tar import ForwardFile, TarSample, iterate_samples

_ASSUMED_FIRST_BYTES = 8 * 2**20
_PADDING_BYTES = 64 * 2**10


class _KeptFile:
    """Passes a reader on, and writes what passes to a file of the cache where there is one."""

    def __init__(self, reader: Any, file: CacheFile | None) -> None:
        self._reader = reader
        self._file = file

    def read(self, size: int, /) -> bytes:
        data: bytes = self._reader.read(size)
        if self._file is not None:
            self._file.write(data)
        return data

    def read_to_the_end(self) -> None:
        """Reads what is behind the archive's end mark, when the file is to be whole."""
        while self._file is not None and self.read(_PADDING_BYTES):
            pass

    def discard(self) -> None:
        """Gives the file up when it is not whole."""
        if self._file is not None:
            self._file.discard()


class TarShard:
    """One archive to read.

    Args:
        row: Its row in the index.
        source: The object.
        constructor: Makes its reader.
    """

    def __init__(self, row: int, source: ObjectSource, constructor: S3ReaderConstructorProtocol) -> None:
        self.row = row
        self.uri = source.uri
        self.first_bytes = min(source.known_size_bytes or _ASSUMED_FIRST_BYTES, _ASSUMED_FIRST_BYTES)
        self._source = source
        self._constructor = constructor
        self._reader: Any = None
        self._range: ObjectStream | None = None
        self._error: Exception | None = None

    def prefetch(self) -> None:
        """Sends the first request where the reader can; an error is kept for `samples`."""
        try:
            reader = self._open()
            if hasattr(reader, "prefetch"):
                reader.prefetch()
        except Exception as error:  # belongs to this shard, not to the one that is read now
            self._error = error

    def samples(self, offset: int) -> Iterator[TarSample]:
        """Yields the samples from an offset on."""
        if self._error is not None:
            raise self._error
        reader = self._open()
        if offset:
            reader.seek(offset)
            yield from iterate_samples(reader, self.uri, offset)
            return
        kept = _KeptFile(reader, self._source.begin_cache_file() if gives_own_bytes(reader) else None)
        try:
            yield from iterate_samples(kept, self.uri)
            kept.read_to_the_end()
        finally:
            kept.discard()

    def prefetch_sample(self, start: int, end: int) -> None:
        """Sends the request for the bytes of one sample, where it is known that the reader gives them as they are."""
        if gives_own_bytes(self._open()):
            self._range = self._source.get_stream(start, end)
            self._range.prefetch()

    def read_sample(self, start: int, end: int) -> TarSample:
        """Returns the one sample between two offsets."""
        file: ForwardFile
        if self._range is not None:
            file = io.BytesIO(self._range.read_all())
        else:
            file = self._open()
            self._reader.seek(start)
        (sample,) = iterate_samples(file, self.uri, start, end)
        return sample

    def close(self) -> None:
        """Stops what is on its way."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()
        part, self._range = self._range, None
        if part is not None:
            part.close()

    def _open(self) -> Any:
        if self._reader is None:
            source = self._source
            self._reader = self._constructor(source.bucket, source.key, source.get_object_info, source.get_stream)
        return self._reader
