"""A write-only file over one upload: the object appears at a clean close, and in no other way."""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager
from types import TracebackType
from typing import NoReturn, Protocol, Self

from typing_extensions import Buffer

from s3core import S3Exception
from s3torch_datasets._binary_file import BinaryFile


class UploadStream(Protocol):
    """What the writer uses of a stream; `s3core.PutObjectStream` is one."""

    def write(self, data: Buffer, /) -> int: ...

    def close(self) -> None: ...

    def abort(self) -> None: ...


class S3Writer(BinaryFile):
    """Writes one object. Only `close()`, or leaving `with` without an exception, makes the object visible.

    An exception in the `with` block, a writer that is dropped without `close()`, the end of the interpreter and a kill
    all leave the previous object as it was.

    Beware of wrappers that close what they wrap: an `io.TextIOWrapper` around a writer calls `close()` when it is
    garbage collected, and so completes half an object. Keep the writer itself in a `with` block.

    Args:
        stream: The upload, from `S3Client.put_object`.

    Example:
        >>> from s3core import S3Client
        >>> with S3Writer(S3Client("eu-central-1").put_object("bucket", "notes.txt")) as writer:  # doctest: +SKIP
        ...     writer.write(b"seen from S3 after this block")
    """

    def __init__(self, stream: UploadStream) -> None:
        self.stream = stream
        self._lock = threading.RLock()  # a signal's handler may abort what it interrupts
        self._pid = os.getpid()
        self._written = 0
        self._closed = False

    def write(self, data: Buffer) -> int:
        """Takes all of a buffer of any type and layout; it may be changed as soon as this returns.

        Returns:
            The number of bytes written.

        Raises:
            ValueError: The writer is closed.
            S3Exception: An upload failed.
        """
        if self._closed:
            raise ValueError("write to a closed S3Writer")
        if self._pid != os.getpid():
            self._refuse_in_child("written to")
        written = self.stream.write(data)
        self._written += written
        return written

    def close(self) -> None:
        """Completes the object; a second call does nothing, and one at the same time waits for the first.

        Raises:
            S3Exception: The upload failed; the previous object is as it was.
        """
        if self._pid != os.getpid():
            if self._closed:
                return
            self._refuse_in_child("completed")
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                self.stream.close()
            except BaseException:
                self.stream.abort()
                raise

    def abort(self) -> None:
        """Gives the object up and leaves the previous one as it was; does nothing after `close()`."""
        if self._pid != os.getpid():
            self._closed = True  # the upload is the parent's, and so is the lock
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self.stream.abort()

    @property
    def closed(self) -> bool:
        """Whether `close()` or `abort()` was called."""
        return self._closed

    def flush(self) -> None:
        """Does nothing: what was written becomes visible as a whole, at `close()`."""

    def readable(self) -> bool:
        """Returns False."""
        return False

    def writable(self) -> bool:
        """Returns True."""
        return True

    def tell(self) -> int:
        """Returns the number of bytes written so far."""
        return self._written

    def _refuse_in_child(self, what: str) -> NoReturn:
        """Leaves an upload that was inherited through a fork to the process that began it."""
        self._closed = True
        raise S3Exception(f"an S3Writer of process {self._pid} cannot be {what} in its child; open another one there")

    def __enter__(self) -> Self:
        if self._closed:
            raise ValueError("enter a closed S3Writer")
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc_type is None:
            self.close()
        elif isinstance(self.stream, AbstractContextManager) and self._pid == os.getpid():
            # The stream knows how long an abort may take: after Ctrl-C nobody waits for it.
            with self._lock:
                if not self._closed:
                    self._closed = True
                    self.stream.__exit__(exc_type, exc, traceback)
        else:
            self.abort()

    def __del__(self) -> None:
        # io.IOBase would call close() here, which completes the object.
        if not getattr(self, "_closed", True):
            self._closed = True
            # A stream with a finaliser of its own gives up without waiting for the network.
            if self._pid == os.getpid() and not hasattr(type(self.stream), "__del__"):
                self.stream.abort()
