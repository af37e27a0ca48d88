"""What the readers of this package share: position, size, checks, pickling and closing; the fetching is theirs."""

from __future__ import annotations

import operator
from abc import abstractmethod
from io import SEEK_CUR, SEEK_END, SEEK_SET
from typing import Any, Self

from typing_extensions import Buffer

from s3torch_datasets._byte_stream import as_bytes_view
from s3torch_datasets._protocol import GetObjectInfo, GetStream
from s3torch_datasets._reader import S3Reader

_PEEK_SIZE_BYTES = 8 * 2**10


class PositionedReader(S3Reader):
    """A reader with a position, over the fetching methods of its subclass.

    Subclasses fetch from a position that lies inside the object, never move it, and hold what they like;
    `_release` drops all of that, and they can fetch again after it.
    """

    def __init__(self, bucket: str, key: str, get_object_info: GetObjectInfo, get_stream: GetStream) -> None:
        self._bucket = bucket
        self._key = key
        self._get_object_info: GetObjectInfo | None = get_object_info
        self._get_stream: GetStream | None = get_stream
        self._position = 0
        self._size: int | None = None

    @abstractmethod
    def _fetch(self, position: int, size: int | None) -> bytes:
        """Returns `size` bytes (None: all of the rest) from the position, fewer only at the end of the object."""

    @abstractmethod
    def _fetch_into(self, position: int, view: memoryview) -> int:
        """Fills the view from the position, short only at the end of the object."""

    @abstractmethod
    def _fetch_some(self, position: int, size: int) -> bytes:
        """Returns 1 to `size` bytes, those at hand where there are any; `b""` only at the end of the object."""

    @abstractmethod
    def _release(self) -> None:
        """Stops transfers and frees memory."""

    @property
    def bucket(self) -> str:
        """Bucket of the object."""
        return self._bucket

    @property
    def key(self) -> str:
        """Exact key of the object."""
        return self._key

    def read(self, size: int | None = None) -> bytes:
        """Reads up to `size` bytes; all of the rest when `size` is None or negative; `b""` at the end."""
        self._check_open()
        if size is not None:
            size = operator.index(size)
            if size < 0:
                size = None
            elif size == 0:
                return b""
        data = self._fetch(self._position, size)
        self._position += len(data)
        return data

    def read1(self, size: int = -1, /) -> bytes:
        """Reads 1 to `size` bytes, those at hand where there are any; `b""` at the end."""
        self._check_open()
        size = operator.index(size)
        if size == 0:
            return b""
        data = self._fetch_some(self._position, _PEEK_SIZE_BYTES if size < 0 else size)
        self._position += len(data)
        return data

    def peek(self, size: int = 0, /) -> bytes:
        """Returns some of the next bytes without moving; `b""` only at the end. `readline` goes by it."""
        self._check_open()
        return self._fetch_some(self._position, _PEEK_SIZE_BYTES)

    def readinto(self, buf: Buffer) -> int:
        """Fills a writable buffer from the position; returns the bytes read, short only at the end of the object.

        Raises:
            TypeError: The buffer is read-only or not contiguous.
        """
        self._check_open()
        with memoryview(buf) as whole:
            if whole.readonly:
                raise TypeError(f"readinto needs a writable buffer, got a read-only {type(buf).__name__}")
            view = as_bytes_view(whole)
            if not view:
                return 0
            try:
                filled = self._fetch_into(self._position, view)
            except Exception:
                # torch.load asks `read` then, and leaves this error pending, so that no attribute of a class is found.
                # https://github.com/pytorch/pytorch/blob/v2.9.0/torch/csrc/jit/python/init.cpp (`BufferAdapter::read`)
                self.__dict__["read"] = self.read
                raise
        self._position += filled
        return filled

    def seek(self, offset: int, whence: int = SEEK_SET, /) -> int:
        """Moves to a byte offset from the start (0), the position (1) or the end (2) and returns the new position.

        A target past the end is clamped to the size of the object.

        Raises:
            ValueError: The target is negative, or `whence` is none of the three.
            TypeError: The offset is not an integer.
        """
        self._check_open()
        offset = operator.index(offset)
        if whence == SEEK_SET:
            target = offset
        elif whence == SEEK_CUR:
            target = self._position + offset
        elif whence == SEEK_END:
            target = self._object_size() + offset
        else:
            raise ValueError(f"whence must be 0, 1 or 2, got {whence!r}")
        if target < 0:
            raise ValueError(f"{self._uri}: cannot seek to the negative position {target}")
        if target > self._position:
            target = min(target, self._object_size())
        self._position = target
        return target

    def tell(self) -> int:
        """Returns the position in bytes from the start of the object."""
        self._check_open()
        return self._position

    def readable(self) -> bool:
        """Returns True; raises ValueError when closed."""
        self._check_open()
        return True

    def seekable(self) -> bool:
        """Returns True; raises ValueError when closed."""
        self._check_open()
        return True

    def close(self) -> None:
        """Stops the transfers and frees the memory; later reads raise ValueError."""
        if not self.closed:
            try:
                if hasattr(self, "_size"):  # an __init__ that raised leaves a reader to finalise
                    self._release()
                    self._get_stream = self._get_object_info = None
            finally:
                self.__dict__.pop("read", None)
                super().close()

    @property
    def _uri(self) -> str:
        return f"s3://{self._bucket}/{self._key}"

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError(f"I/O operation on the closed reader of {self._uri}")

    def _object_size(self) -> int:
        if self._size is None:
            self._size = self._find_size()
        return self._size

    def _find_size(self) -> int:
        assert self._get_object_info is not None
        return self._get_object_info().size

    def _open(self, start: int | None = None, end: int | None = None) -> Any:
        assert self._get_stream is not None
        return self._get_stream(start, end)

    def __getstate__(self) -> dict[str, Any]:
        self._check_open()
        return {
            "bucket": self._bucket,
            "key": self._key,
            "get_object_info": self._get_object_info,
            "get_stream": self._get_stream,
            "position": self._position,
            "size": self._size,
            **self._settings(),
        }

    def _settings(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        position, size = state.pop("position"), state.pop("size")
        self.__init__(**state)  # type: ignore[misc]  # the state holds the constructor's own arguments
        self._position, self._size = position, size

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _new, (type(self),), self.__getstate__()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._uri}{' (closed)' if self.closed else ''}>"


def _new(cls: type[PositionedReader]) -> PositionedReader:
    return cls.__new__(cls)
