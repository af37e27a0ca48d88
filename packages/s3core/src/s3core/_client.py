"""`S3Client`: everything that can be asked of S3, behind one value that pickles."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .__about__ import __version__
from ._condition import Condition
from ._config import S3ClientConfig
from ._exceptions import ConfigError
from ._get import GetObjectStream
from ._head import Target, find, head
from ._info import ObjectInfo
from ._list import ListObjectStream
from ._objects import copy_object, delete_object, delete_objects
from ._pool import wait_for
from ._put import PutObjectStream
from ._ranges import RangeRead, read_ranges
from ._runtime import Runtime, runtime_for
from ._settings import resolve_settings
from ._uri import check_bucket, check_key


class S3Client:
    """A client of AWS S3, or of any store that speaks S3.

    It is a value: cheap to make, lazy (nothing is sent and no thread starts before the first request), safe to share
    between threads, to pickle and to inherit by fork; each process has connections and threads of its own. Clients of
    equal settings in one process share them.

    Args:
        region: The region; None for `AWS_REGION`, `AWS_DEFAULT_REGION`, the profile, and then what the bucket says.
        endpoint: URL of an S3-compatible store; None for `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, the profile, and
            then AWS.
        s3client_config: All other settings; see `S3ClientConfig`.
        user_agent: Product that uses the client, such as `my-trainer/1.0`, put before the config's suffix.

    Raises:
        ConfigError: An argument, or the environment variable it stands for, cannot work.

    Example:
        >>> client = S3Client("eu-west-1")
        >>> client.get_object("bucket", "images/0001.jpg").read_all()  # doctest: +SKIP
    """

    def __init__(
        self,
        region: str | None = None,
        *,
        endpoint: str | None = None,
        s3client_config: S3ClientConfig | None = None,
        user_agent: str | None = None,
    ) -> None:
        config = s3client_config if s3client_config is not None else S3ClientConfig()
        if not isinstance(config, S3ClientConfig):
            raise ConfigError(f"s3client_config is a {type(config).__name__}; it must be an S3ClientConfig")
        for name, value in (("region", region), ("endpoint", endpoint), ("user_agent", user_agent)):
            if value is not None and not isinstance(value, str):
                raise ConfigError(f"{name} is {value!r}; it must be a text or None")
        if user_agent is not None and not (user_agent.isascii() and user_agent.isprintable()):
            raise ConfigError(f"user_agent is {user_agent!r}; it must be printable ASCII text")
        self._arguments = (region, endpoint, config, user_agent)
        self._settings = resolve_settings(region or None, endpoint or None, config, _user_agent(user_agent, config))
        self._live: Runtime | None = None

    @property
    def region(self) -> str | None:
        """The region; None while only the bucket can tell it."""
        return self._settings.region

    @property
    def endpoint(self) -> str | None:
        """The endpoint; None for AWS."""
        return self._settings.endpoint

    @property
    def s3client_config(self) -> S3ClientConfig:
        """The other settings."""
        return self._settings.config

    def list_objects(
        self,
        bucket: str,
        prefix: str = "",
        delimiter: str = "",
        max_keys: int = 1000,
        *,
        start_after: str | None = None,
    ) -> ListObjectStream:
        """List the objects whose keys start with a prefix, page by page.

        The prefix is a string, not a folder: `data/a` finds `data/abc`. Keys are exact.

        Args:
            bucket: The bucket.
            prefix: What the keys start with.
            delimiter: Keys are rolled up at the first one behind the prefix; usually `/`, empty for none.
            max_keys: Keys per page, 1000 at most on AWS.
            start_after: List only what comes after this key, in the order of its UTF-8 bytes.

        Returns:
            An iterator of pages, which can be pickled and goes on where it was.

        Raises:
            S3Exception: When it is iterated: a request failed.
        """
        check_bucket(bucket)
        return ListObjectStream(self, bucket, prefix, delimiter, max_keys, start_after)

    def head_object(self, bucket: str, key: str, *, version_id: str | None = None) -> ObjectInfo:
        """Ask for an object's size, ETag, time and storage class.

        Args:
            bucket: The bucket.
            key: The key.
            version_id: The version; None for the latest.

        Raises:
            NoSuchKeyError: There is no such object.
            S3Exception: The request failed.
        """
        runtime, target = self._runtime, _target(bucket, key, version_id)
        return wait_for(runtime.pool.submit(head, runtime, target))

    def find_object(self, bucket: str, key: str) -> ObjectInfo | None:
        """Ask whether an object is there, and for what `head_object` tells of it.

        Args:
            bucket: The bucket.
            key: The key.

        Returns:
            What it is; None when the bucket has no such object.

        Raises:
            NoSuchBucketError: There is no such bucket.
            AccessDeniedError: The credentials do not allow to look; AWS says so of a missing object, too, to those who
                may not list the bucket.
            S3Exception: The request failed.
        """
        runtime, target = self._runtime, _target(bucket, key)
        return wait_for(runtime.pool.submit(find, runtime, target))

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
    ) -> GetObjectStream:
        """Open an object, or a range of it, for reading; nothing is sent yet.

        Args:
            bucket: The bucket.
            key: The key.
            object_info: What a listing said about it; saves a request where the size decides how to read. Without an
                ETag its size is taken for a guess.
            start: First byte; None for the first of the object.
            end: One past the last byte; None for the object's end. Past the end means the end.
            version_id: The version; None for the latest.
            etag: The ETag that the object must still have, or reading raises `ObjectChangedError`; None for any.
                Several streams that must be of one version name it.

        Returns:
            A stream of bytes; see `GetObjectStream`.
        """
        target = _target(bucket, key, version_id)
        return GetObjectStream(self._runtime, target, object_info=object_info, start=start, end=end, etag=etag)

    def read_ranges(
        self,
        reads: Iterable[RangeRead],
        *,
        progress: Callable[[int], None] | None = None,
        on_read: Callable[[int], None] | None = None,
    ) -> dict[tuple[str, str], str | None]:
        """Read many ranges of many objects at once, each straight into its buffer.

        Args:
            reads: The ranges with their buffers; an iterable is taken one by one as requests become free.
            progress: Called in this thread with the number of bytes of each request that ended, and with 0 every half
                a second in which none ends. What it raises ends the reading.
            on_read: Called in this thread with the number of each read, counted from 0, once its buffer is full; in
                the order in which they end.

        Returns:
            By bucket and key, the ETag of the version that was read of each object; None where the store tells none.

        Raises:
            ObjectChangedError: An object was replaced meanwhile.
            S3Exception: A request failed. No buffer is written to after that, or after any other error.
        """
        return read_ranges(self._runtime, reads, progress, on_read)

    def put_object(
        self,
        bucket: str,
        key: str,
        *,
        storage_class: str | None = None,
        size_hint: int | None = None,
        metadata: Mapping[str, str] | None = None,
        overwrite: bool = True,
        if_match: str | None = None,
    ) -> PutObjectStream:
        """Open a new object for writing; it becomes visible by a clean `close()` and by nothing else.

        Args:
            bucket: The bucket.
            key: The key.
            storage_class: Storage class; None for the config's.
            size_hint: Size of the object in bytes, or an upper bound: needed above 78 GiB at the default part size.
            metadata: User metadata, without the `x-amz-meta-` prefix.
            overwrite: False has `close()` raise `ObjectExistsError` when there is an object of this key by then; of
                several writers at the same moment one succeeds. It is up to the store, see the guide.
            if_match: ETag of the object to replace: `close()` raises `PreconditionFailedError` when another one is in
                place by then, or none. It is up to the store, too.

        Returns:
            A stream to write to; see `PutObjectStream`.

        Raises:
            ConfigError: An argument cannot work.
        """
        if if_match is not None and not (overwrite and if_match):
            raise ConfigError(
                f"if_match={if_match!r} with overwrite={overwrite}; an ETag names what is overwritten, and is not empty"
            )
        is_conditional = if_match is not None or not overwrite
        return PutObjectStream(
            self._runtime,
            _target(bucket, key),
            storage_class=storage_class,
            size_hint=size_hint,
            metadata=metadata,
            condition=Condition(if_match) if is_conditional else None,
        )

    def copy_object(self, source_bucket: str, source_key: str, bucket: str, key: str) -> None:
        """Copy an object inside the store, with its metadata; in parts above 5 GiB, then without its tags.

        Args:
            source_bucket: Bucket to copy from.
            source_key: Key to copy from.
            bucket: Bucket to copy to.
            key: Key to copy to.

        Raises:
            S3Exception: The copy failed; the target is as it was, unless the message says that the store may have done
                it: no answer came.
        """
        copy_object(self._runtime, _target(source_bucket, source_key), _target(bucket, key))

    def delete_object(self, bucket: str, key: str) -> None:
        """Delete an object; harmless when there is none.

        Args:
            bucket: The bucket.
            key: The key.

        Raises:
            S3Exception: The request failed.
        """
        _target(bucket, key)
        delete_object(self._runtime, bucket, key)

    def delete_objects(self, bucket: str, keys: Iterable[str]) -> None:
        """Delete many objects, a thousand per request.

        Args:
            bucket: The bucket.
            keys: The keys; an iterable is taken bit by bit as requests become free.

        Raises:
            S3Exception: Some could not be deleted; the message names the first and counts the others. A request that
                fails as a whole ends it, with the rest of the keys not deleted.
            ValueError: One of the keys cannot be a key.
        """
        check_bucket(bucket)
        delete_objects(self._runtime, bucket, keys)

    @property
    def _runtime(self) -> Runtime:
        live = self._live
        if live is None or live.pid != os.getpid():
            live = self._live = runtime_for(self._settings)
        return live

    def __reduce__(self) -> tuple[Any, ...]:
        region, endpoint, config, user_agent = self._arguments
        return _rebuild, (region, endpoint, config, user_agent)

    def __repr__(self) -> str:
        return f"S3Client(region={self.region!r}, endpoint={self.endpoint!r})"


def _rebuild(region: str | None, endpoint: str | None, config: S3ClientConfig, user_agent: str | None) -> S3Client:
    return S3Client(region, endpoint=endpoint, s3client_config=config, user_agent=user_agent)


def _target(bucket: str, key: str, version_id: str | None = None) -> Target:
    check_bucket(bucket)
    check_key(bucket, key)
    return Target(bucket, key, version_id)


def _user_agent(product: str | None, config: S3ClientConfig) -> str:
    version = ".".join(map(str, sys.version_info[:3]))
    own = f"s3core/{__version__} (Python {version}; {sys.platform})"
    return " ".join(part for part in (own, product, config.user_agent_suffix) if part)
