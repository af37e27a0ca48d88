"""One upload that completes when its block ends cleanly, and whose first error is the one that the caller sees."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from s3core import PutObjectStream, S3Client

from ._lasting import LastingMemory
from ._progress import TransferProgress
from ._threads import StoppedError

# How much of a tensor is handed over between two looks at whether to go on: several parts.
_STEP_BYTES = 64 * 2**20
_UNCOUNTED_BYTES = 64 * 2**20


class UploadFile:
    """The file that `torch.save` writes to.

    An error in `write` sticks: `torch.save` answers one with a write of its own while it cleans up, and hides the first
    error behind a complaint about its zip archive.

    Args:
        stream: The upload.
        progress: Counts what is written.
        stop: When set, further writes end with `StoppedError`.
        lasting: Memory that need not be copied.
    """

    def __init__(
        self,
        stream: PutObjectStream,
        progress: TransferProgress,
        stop: threading.Event | None = None,
        lasting: LastingMemory | None = None,
    ) -> None:
        self._stream = stream
        self._progress = progress
        self._stop = stop
        self._lasting = lasting
        self.error: BaseException | None = None
        self._is_over = False

    def end(self) -> None:
        """Take nothing more, without an error: the upload is complete or given up.

        torch's archive writer, when Ctrl-C kept it from being closed, writes once more in its destructor, where an
        error ends the process (https://github.com/pytorch/pytorch/blob/main/caffe2/serialize/inline_container.cc).
        It refers to this file in a way that the garbage collector cannot see, and an error to it, by the frames that it
        has come through: with both, the tensors would never be let go of.
        """
        self._is_over = True
        self.error = None

    def write(self, data: Any, *, copy: bool = True) -> int:
        """Hand bytes over.

        Args:
            data: Any buffer whose bytes lie in a row.
            copy: False promises that it stays as it is until the upload's block has ended; see `PutObjectStream.write`.
        """
        if self._is_over:
            return memoryview(data).nbytes
        if self.error is not None:
            raise self.error
        try:
            view = memoryview(data).cast("B")
            found = self._lasting.find(view) if self._lasting is not None else None
            if found is not None:
                view, copy = found, False
            for start in range(0, len(view), _STEP_BYTES):
                self.check_stop()
                self._progress.advance(self._stream.write(view[start : start + _STEP_BYTES], copy=copy))
        except BaseException as error:
            self.error = error
            raise
        return len(view)

    def check_stop(self) -> None:
        """Raise `StoppedError` when this upload is to end without completing."""
        if self._stop is not None and self._stop.is_set():
            raise StoppedError

    def flush(self) -> None:
        """Do nothing: parts are sent as they fill."""

    def tell(self) -> int:
        """Bytes written so far."""
        return self._stream.tell()


@contextmanager
def upload(
    client: S3Client,
    bucket: str,
    key: str,
    progress: TransferProgress,
    *,
    size_hint: int | None = None,
    stop: threading.Event | None = None,
    lasting: LastingMemory | None = None,
) -> Iterator[UploadFile]:
    """Write one object: it appears when the block ends, and not at all when the block raises.

    Args:
        client: Client of the bucket.
        bucket: The bucket.
        key: The key.
        progress: Counts what is written.
        size_hint: About how many bytes there will be, for the size of the parts.
        stop: When set, the upload is given up.
        lasting: Memory that stays as it is until the block has ended, and need not be copied.

    Yields:
        The file to write to.
    """
    # What is pickled may make it longer, and an upload whose parts are too small for it fails at its end.
    hint = size_hint + size_hint // 64 + _UNCOUNTED_BYTES if size_hint else None
    stream = client.put_object(bucket, key, size_hint=hint)
    file = UploadFile(stream, progress, stop, lasting)
    handled = sys.exception()
    try:
        yield file
        if file.error is not None:  # somebody between caught it, so that the object would lack those bytes
            raise file.error
        file.check_stop()
    except BaseException as error:
        first = file.error or _interruption(error, handled) or error
        # Waits until nothing is left behind; after Ctrl-C only for a moment.
        stream.__exit__(type(first), first, first.__traceback__)
        if first is not error:
            raise first from None
        raise
    finally:
        file.end()
    stream.close()


def _interruption(error: BaseException, handled: BaseException | None) -> BaseException | None:
    """Ctrl-C that came on the way to `write`, where torch's archive writer answers it with an error of its own.

    While that writer is at work, as on a checksum, Python waits with Ctrl-C until it calls `write`.

    Args:
        error: What came out of the block.
        handled: What the caller was handling already when it began.
    """
    context = error.__context__
    return None if context is handled or isinstance(context, Exception) else context
