"""The abstract reader: what every file-like view of one S3 object promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from io import SEEK_SET

from typing_extensions import Buffer

from s3torch_datasets._binary_file import BinaryFile


class S3Reader(ABC, BinaryFile):
    """A read-only binary file over one object in S3.

    `S3ReaderConstructor` makes the readers of this package; a subclass of one's own needs the abstract methods only.
    """

    @property
    @abstractmethod
    def bucket(self) -> str:
        """Bucket of the object."""

    @property
    @abstractmethod
    def key(self) -> str:
        """Exact key of the object."""

    @abstractmethod
    def read(self, size: int | None = None) -> bytes:
        """Reads up to `size` bytes; all of the rest when `size` is None or negative; `b""` at the end."""

    @abstractmethod
    def seek(self, offset: int, whence: int = SEEK_SET, /) -> int:
        """Moves to a byte offset from the start (0), the position (1) or the end (2) and returns the new position.

        A target past the end is clamped to the size of the object.

        Raises:
            ValueError: The target is negative, or `whence` is none of the three.
            TypeError: The offset is not an integer.
        """

    @abstractmethod
    def tell(self) -> int:
        """Returns the position in bytes from the start of the object."""

    @abstractmethod
    def readinto(self, buf: Buffer) -> int:
        """Fills a writable buffer from the position; returns the bytes read, short only at the end of the object."""

    def read1(self, size: int = -1, /) -> bytes:
        """Reads up to `size` bytes with at most one request where the reader can; here the same as `read`."""
        return self.read(size)

    def readable(self) -> bool:
        """Returns True."""
        return True

    def writable(self) -> bool:
        """Returns False."""
        return False

    def seekable(self) -> bool:
        """Returns True."""
        return True
