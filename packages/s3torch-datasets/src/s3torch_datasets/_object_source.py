"""One object to be read: opens its streams, possibly ahead of time, and remembers what they tell of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol

from typing_extensions import Buffer

from s3core import ObjectInfo, S3Exception
from s3torch_datasets._bucket_key_data import S3BucketKeyData
from s3torch_datasets._cached_streams import CachingStream, FileStream
from s3torch_datasets._disk_cache import CacheFile, DiskCache
from s3torch_datasets._fork_count import ForkCount


class ObjectStream(Protocol):
    """What is used of `s3core.GetObjectStream` here."""

    @property
    def object_info(self) -> ObjectInfo: ...

    def __iter__(self) -> Iterator[Buffer]: ...

    def __next__(self) -> Buffer: ...

    def prefetch(self) -> None: ...

    def read_all(self) -> bytes: ...

    def close(self) -> None: ...


class RemoteStream(ObjectStream, Protocol):
    """One that is not of the cache."""

    @property
    def is_described(self) -> bool: ...

    def confirm(self) -> ObjectInfo: ...


class ObjectClient(Protocol):
    """What is used of `s3core.S3Client` to read."""

    def get_object(
        self,
        bucket: str,
        key: str,
        *,
        object_info: ObjectInfo | None = None,
        start: int | None = None,
        end: int | None = None,
        version_id: str | None = None,
        etag: str | None = None,
    ) -> RemoteStream: ...

    def head_object(self, bucket: str, key: str, *, version_id: str | None = None) -> ObjectInfo: ...


class ObjectSource:
    """Gives a reader its `get_object_info` and `get_stream`.

    All streams are of one version of the object: the listed one where the listing tells its ETag, else the one that the
    first stream found. An object that was replaced since raises `ObjectChangedError`.

    It pickles without its open streams.

    Args:
        client: Client that reads.
        one: The object, and what is known of it.
        cache: Where whole objects are kept; None for nowhere.
    """

    __slots__ = (
        "_cache",
        "_client",
        "_error",
        "_forks",
        "_info",
        "_is_sure",
        "_last",
        "_ready",
        "_version",
        "bucket",
        "key",
        "on_whole_read",
        "was_opened",
    )

    def __init__(self, client: ObjectClient, one: S3BucketKeyData, cache: DiskCache | None = None) -> None:
        self.bucket = one.bucket
        self.key = one.key
        self.was_opened = False
        self.on_whole_read: Callable[[], None] | None = None
        self._client = client
        self._cache = cache
        self._info = one.object_info
        # A size alone may be that of an older object, until the store confirms it.
        self._is_sure = self._info is not None and bool(self._info.etag or self._info.version_id)
        # Only a version that was asked for is named in requests: s3:GetObject does not allow to name one.
        self._version = None if one.object_info is None else one.object_info.version_id
        self._ready: ObjectStream | None = None
        self._last: RemoteStream | None = None
        self._error: Exception | None = None
        self._forks = 0

    @property
    def known_size_bytes(self) -> int | None:
        """Size of the object, where nothing has to be waited for."""
        last = self._last
        if not self._is_sure and last is not None and last.is_described:
            self._learn()
        return None if self._info is None else self._info.size

    @property
    def uri(self) -> str:
        """The object as `s3://bucket/key`."""
        return f"s3://{self.bucket}/{self.key}"

    def get_object_info(self) -> ObjectInfo:
        """Returns what is known of the object, from the listing, else from the first stream, else from a HEAD."""
        if not self._is_sure:
            self._learn()
        if self._info is None or not self._is_sure:
            self._info, self._is_sure = self._client.head_object(self.bucket, self.key), True
        return self._info

    def get_stream(self, start: int | None = None, end: int | None = None) -> ObjectStream:
        """Opens the bytes `[start, end)`; the first stream over the whole object may be on its way already."""
        self.was_opened = True
        if not self._is_whole(start, end):
            return self._open(start, end)
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        stream, self._ready = self._ready, None
        on_whole_read = self.on_whole_read  # which another thread may take away
        if stream is None or self._forks != ForkCount.now:
            stream = self._open(None, None)
            if on_whole_read is not None:
                stream.prefetch()  # before those that come after it
        if on_whole_read is not None:
            on_whole_read()
        return stream

    def prefetch(self) -> None:
        """Sends the first request for the whole object and does not wait; an error is kept for `get_stream`.

        Nothing is sent for an object that is known to be empty: readers know that too, and ask for no byte of it.
        """
        if self._is_sure and self._info is not None and not self._info.size:
            return
        self._forks = ForkCount.now
        try:
            self._ready = self._open(None, None)
            self._ready.prefetch()
        except Exception as error:  # belongs to this object's sample, not to the one that is read now
            self._error = error

    def discard(self) -> None:
        """Stops what `prefetch` started in this process."""
        ready, self._ready = self._ready, None
        if ready is not None and self._forks == ForkCount.now:
            ready.close()

    def begin_cache_file(self) -> CacheFile | None:
        """Returns a file of the cache to write the whole object to, where it is wanted and not there."""
        info = self._info
        if self._cache is None or info is None or info.etag is None or self._cache.has(self.bucket, info):
            return None
        return self._cache.begin(self.bucket, info)

    def _open(self, start: int | None, end: int | None) -> ObjectStream:
        info = self._info
        if self._cache is None or info is None or info.etag is None:
            return self._open_remote(start, end)
        descriptor = self._cache.open(self.bucket, info)
        if descriptor is not None:
            return FileStream(descriptor, info, start, end)
        file = self._cache.begin(self.bucket, info) if self._is_whole(start, end) else None
        stream = self._open_remote(start, end)
        if file is None:
            return stream
        if not info.size:
            file.write(b"")  # a reader that knows the size need not ask the stream for anything
        return CachingStream(stream, file)

    def _open_remote(self, start: int | None, end: int | None) -> RemoteStream:
        self._learn()  # what the first stream was told holds the later ones to the same version of the object
        info = self._info
        stream = self._client.get_object(
            self.bucket,
            self.key,
            object_info=info,
            start=start,
            end=end,
            version_id=self._version,
            etag=None if info is None else info.etag,
        )
        if not self._is_sure:
            self._last = stream
        return stream

    def _learn(self) -> None:
        """Takes what the first stream was told, which may have to be waited for."""
        last = self._last
        if last is not None:
            try:
                self._info, self._is_sure = last.confirm(), True
            except (S3Exception, ValueError):
                pass  # it failed, was closed too early, or is the parent's: no byte was read, any version will do
        self._last = None

    def _is_whole(self, start: int | None, end: int | None) -> bool:
        if start:
            return False
        return end is None or (self._is_sure and self._info is not None and end >= self._info.size)

    def __reduce__(self) -> tuple[Any, ...]:
        self._learn()
        info = None if self._info is None else replace(self._info, version_id=self._version)
        return ObjectSource, (self._client, S3BucketKeyData(self.bucket, self.key, info), self._cache)
