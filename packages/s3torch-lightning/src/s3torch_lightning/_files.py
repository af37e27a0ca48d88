"""The files that the filesystem opens for writing: each becomes an object at a clean close, and in no other way."""

from __future__ import annotations

import io
import sys
from types import TracebackType
from typing import Any

from typing_extensions import Buffer

from s3core import PutObjectStream, S3Exception
from s3torch_datasets import S3Writer

from ._compressed_upload import CompressedUpload


class DeferredWriter(S3Writer):
    """A file of a transaction: `close` only ends the writing, `commit` makes the object visible.

    Args:
        stream: The upload, from `S3Client.put_object`, or compressed.
        uri: Where the object will be.
    """

    def __init__(self, stream: PutObjectStream | CompressedUpload, uri: str) -> None:
        super().__init__(stream)
        self._uri = uri
        self._ended = False

    @property
    def closed(self) -> bool:
        """Whether the writing has ended, or the object was given up."""
        return self._ended or super().closed

    def write(self, data: Buffer) -> int:
        """Take bytes, as any writer does until `close`."""
        if self._ended:
            raise ValueError(f"write to {self._uri} after its close")
        return super().write(data)

    def close(self) -> None:
        """End the writing."""
        self._ended = True

    def commit(self) -> None:
        """Make the object visible.

        Raises:
            S3Exception: It was never closed, or was given up after an exception; the previous object is as it was.
        """
        if self._closed:
            raise S3Exception(f"{self._uri} was given up in its transaction, and is as it was; write it again")
        if not self._ended:
            self.abort()
            raise S3Exception(
                f"{self._uri} was not closed in its transaction, and is as it was; close it before the end"
            )
        super().close()

    def discard(self) -> None:
        """Give the object up."""
        self.abort()


class FirstErrorFile:
    """The file that `torch.save` writes to: it keeps the first error, which torch hides behind one of its archive.

    Args:
        writer: Where the bytes go.
    """

    def __init__(self, writer: S3Writer) -> None:
        self._writer = writer
        self.error: BaseException | None = None

    def write(self, data: Any) -> int:
        """Hand bytes on; they have been copied when it returns."""
        if self.error is not None:
            raise self.error
        try:
            return self._writer.write(data)
        except BaseException as error:
            self.error = error
            raise

    def flush(self) -> None:
        """Do nothing: parts are sent as they fill."""


class TextWriter(io.TextIOWrapper):
    """A text file over a writer which, unlike its base class, gives the object up after an exception or when dropped.

    Args:
        writer: The binary file.
        **options: `encoding`, `errors` and `newline`, as for `io.TextIOWrapper`.
    """

    def __init__(self, writer: S3Writer, **options: Any) -> None:
        self._writer = writer  # first, because a bad option leaves half a file to be collected
        super().__init__(writer, **options)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._writer.abort()
        else:
            self.close()

    def close(self) -> None:
        """Write what is buffered and complete the object; nothing after the object was given up."""
        if self._writer.closed:
            return
        try:
            self.flush()
        except BaseException:
            self._writer.abort()  # the base class would complete what lacks its end
            raise
        super().close()

    def __del__(self) -> None:
        # io.IOBase would call close() here, which completes the object.
        # While the interpreter ends it was given up already, and a thread that stands still may hold its lock.
        if not (sys.is_finalizing() or self._writer.closed):
            self._writer.abort()
