"""An upload through a compressor of fsspec, which has an end of its own to write."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from typing_extensions import Buffer

from s3core import PutObjectStream, S3Exception


class CompressedUpload:
    """An upload through one of fsspec's compressors: the end of both is one, and what is given up gets no end.

    Args:
        stream: The upload, from `S3Client.put_object`.
        compress: Makes the compressor, as those of `fsspec.compression.compr` do.
    """

    def __init__(self, stream: PutObjectStream, compress: Callable[..., Any]) -> None:
        self._stream = stream
        self._sink = _CompressorSink(stream)
        self._compressor = compress(self._sink, mode="w")

    def write(self, data: Buffer, /) -> int:
        """Compress bytes; they have been copied when it returns."""
        length = memoryview(data).nbytes
        try:
            self._compressor.write(data)
        except BaseException:
            self.abort()  # nobody knows how much of it the compressor has taken
            raise
        return length

    def close(self) -> None:
        """Write what the compressor holds, and complete the object.

        Raises:
            S3Exception: The upload failed, now or in an earlier `write`; the previous object is as it was.
        """
        if self._sink.stream is None:
            raise S3Exception(f"s3://{self._stream.bucket}/{self._stream.key} was given up when a write had failed")
        self._compressor.close()
        self._stream.close()

    def abort(self) -> None:
        """Give the object up."""
        self._end_compressor()
        self._stream.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._end_compressor()
            self._stream.__exit__(kind, error, traceback)

    def __del__(self) -> None:
        # The upload gives itself up when it is collected, without waiting for the network.
        if hasattr(self, "_compressor"):
            self._end_compressor()

    def _end_compressor(self) -> None:
        self._sink.stream = None
        # Left to be collected, it would complain of its missing end, or write it.
        with contextlib.suppress(Exception):
            self._compressor.close()


class _CompressorSink:
    """What a compressor writes to; what it still writes after the object was given up goes nowhere."""

    def __init__(self, stream: PutObjectStream) -> None:
        self.stream: PutObjectStream | None = stream

    def write(self, data: Buffer) -> int:
        if self.stream is not None:
            self.stream.write(data)
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Do nothing: parts are sent as they fill."""

    def close(self) -> None:
        """Do nothing: some compressors close what they write to, with an error or without."""
