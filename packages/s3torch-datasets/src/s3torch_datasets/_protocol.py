"""What a reader is built from, and what builds one: the seam between datasets, checkpoints and a user's own readers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from typing_extensions import Buffer

from s3core import ObjectInfo

if TYPE_CHECKING:
    from s3torch_datasets._reader import S3Reader

GetObjectInfo = Callable[[], ObjectInfo]


class GetStream(Protocol):
    """Opens the object for reading: `get_stream(start=None, end=None)`."""

    def __call__(self, start: int | None = None, end: int | None = None) -> Iterator[Buffer]:
        """Opens the bytes `[start, end)` of the object.

        Args:
            start: First byte; None means the first of the object.
            end: One past the last byte; None means the end of the object.

        Returns:
            The bytes as an iterator of bytes-like chunks, in order. Nothing need be sent before the first `next`.
        """
        ...


class S3ReaderConstructorProtocol(Protocol):
    """Builds the reader of one object. `S3ReaderConstructor` makes some; any callable of this shape is one."""

    def __call__(self, bucket: str, key: str, get_object_info: GetObjectInfo, get_stream: GetStream) -> S3Reader:
        """Builds a reader; it should send no request before the first read.

        Args:
            bucket: Bucket of the object.
            key: Exact key of the object.
            get_object_info: Returns what is known of the object: its size in bytes and its ETag. It sends a HEAD only
                when neither a listing nor an opened stream has told both.
            get_stream: Opens a range of the object.
        """
        ...
