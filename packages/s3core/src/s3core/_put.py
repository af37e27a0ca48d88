"""`PutObjectStream`: an object that becomes visible, whole, by a clean `close()` and by nothing else."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from queue import Empty, SimpleQueue
from sys import is_finalizing
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ._condition import Condition, send_on
from ._config import KiB
from ._exceptions import NoSuchKeyError, S3Exception
from ._get import GetObjectStream
from ._head import Target, find
from ._headers import checksum_headers, checksum_of, creation_headers
from ._memory import new_buffer
from ._multipart import MultipartUpload
from ._part import Part
from ._plan import MAX_PARTS, plan_part_size, plan_parts_in_flight
from ._pool import wait_for
from ._request import Refused, Request
from ._stop import INTERRUPT_SECONDS, Stop

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

    from ._info import ObjectInfo
    from ._library import Pieces
    from ._runtime import Runtime

# Shorter pieces are copied even when they need not be: each piece is a call to the socket, maybe a packet.
_MIN_REFERRED = 64 * KiB
# Copies in a part that is else the caller's memory, such as the heads between tensors: that much is not counted.
_MOST_UNCOUNTED = 512 * KiB


class PutObjectStream:
    """The bytes of a new object; made by `S3Client.put_object`.

    `write` copies what may change, so that the caller may reuse its buffer at once; `copy=False` saves that. What fits
    into one part is sent by `close()` in one request; more becomes a multipart upload, with parts in parallel and
    memory bounded. Only a clean `close()` makes the object visible: an exception in the `with` block, `abort()`, a
    stream that is dropped and the exit of the interpreter all leave the old object as it was, and no upload behind. (A
    process that is killed leaves its upload to a lifecycle rule.)

    It may be used from several threads, and from a signal's handler. A process that inherited it by fork can do nothing
    with it.

    Example:
        >>> with client.put_object("bucket", "result.bin") as stream:  # doctest: +SKIP
        ...     stream.write(b"all or nothing")
    """

    def __init__(
        self,
        runtime: Runtime,
        target: Target,
        *,
        storage_class: str | None = None,
        size_hint: int | None = None,
        metadata: Mapping[str, str] | None = None,
        condition: Condition | None = None,
    ) -> None:
        config = runtime.config
        self._closed = True  # Until the arguments have passed.
        self._upload: MultipartUpload | None = None
        self._runtime = runtime
        self._target = target
        self._part_size = plan_part_size(config.part_size, size_hint)
        bounds = self._part_size, config.concurrency, config.memory_limit
        self._most_copied = plan_parts_in_flight(*bounds, is_copied=True)
        self._most_referred = plan_parts_in_flight(*bounds, is_copied=False)
        self._headers = creation_headers(config, storage_class, metadata)
        self._checksum = config.upload_checksum
        self._condition = condition
        # Reentrant for a signal's handler, which may close or abort what it interrupts.
        self._lock = threading.RLock()
        self._part = Part()
        self._refers = False
        # Rights to hold one more part: a buffer that was used, or None where there is none yet.
        self._free: SimpleQueue[bytearray | None] = SimpleQueue()
        self._charge = object()  # In whose name bytes are taken from the client's budget.
        self._number = 0
        self._size = 0
        # Of the error only its text: an error refers to all that was going on when it was raised, and the garbage
        # collector cannot find its way through torch's archive writer, which refers to what it writes to.
        self._error: str | None = None
        self._is_torn = False  # While a write is not all here; for good when it failed.
        self._is_closing = False
        self._aborted = False
        self._stop = Stop()  # Of the PUT of the whole object.
        self._closed = False

    @property
    def bucket(self) -> str:
        """The bucket."""
        return self._target.bucket

    @property
    def key(self) -> str:
        """The key."""
        return self._target.key

    @property
    def closed(self) -> bool:
        """Whether the stream takes no more bytes."""
        return self._closed

    def tell(self) -> int:
        """How many bytes were written."""
        return self._size

    def write(self, data: Any, *, copy: bool = True) -> int:
        """Append bytes.

        Args:
            data: Any buffer: `bytes`, `bytearray`, a `memoryview` of any layout, an array, a tensor's memory.
            copy: True copies the bytes before this returns, unless they are `bytes`, which nobody can change. False
                sends large pieces from where they lie, which saves the memory of the parts and time: they must then
                stay as they are until `close` or `abort` has returned.

        Returns:
            The number of bytes.

        Raises:
            TypeError: `data` is no buffer.
            ValueError: The stream is closed.
            S3Exception: A part could not be uploaded; the upload is aborted, the old object is as it was.
        """
        view = _flat(data)
        self._check_process()  # Before the lock, which a thread of the parent may have held when this child came.
        with self._lock:
            self._check_open()
            self._is_torn = True
            try:
                self._check_uninterrupted()
                self._check_size(len(view))
                self._append(view, copy)
                self._is_torn = False
                if self._aborted or self._error is not None:
                    self._check_uninterrupted()
            except BaseException as error:
                self._fail(error)
                raise
        return len(view)

    def close(self) -> None:
        """Complete the upload: from here on the object is visible. Harmless when called again.

        Raises:
            ObjectExistsError: There is an object of this key, and the stream was opened with `overwrite=False`.
            PreconditionFailedError: The stream was opened with `if_match`, and another object is in place, or none.
            S3Exception: The upload failed, now or in an earlier `write`; the old object is as it was, unless the
                message says that the new one may be in place: of the last request no answer came.
        """
        if self.closed:
            return
        self._check_process()
        with self._lock:
            if self._closed:
                return
            if self._is_closing:
                raise S3Exception(
                    f"the upload of {self._target.uri} is being closed by what was interrupted; go on with that first"
                )
            self._note_tear()
            if self._error is not None:
                self._closed = True
                raise S3Exception(
                    f"the upload of {self._target.uri} was aborted because a write had failed before: {self._error}"
                )
            if self._aborted:
                self._closed = True
                if self._upload is not None:
                    self._upload.abort()  # which a `write` may have begun meanwhile
                return
            self._is_closing = True
            try:
                self._finish()
            except BaseException as error:
                self._fail(error)
                raise
            finally:
                self._closed = True
                self._drop_buffers()

    def abort(self) -> None:
        """Give the object up: the old one stays, and no upload is left behind. Harmless when called again.

        A signal's handler may call it, in the midst of a `write` too. A `close` that waits for its last answer decides
        by itself.
        """
        self._abort(timeout=30.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            # Ctrl-C wants to be through at once; the abort then goes on in the background. A write has waited already.
            seconds = INTERRUPT_SECONDS if self._error is None else 0.0
            self._abort(timeout=30.0 if isinstance(error, Exception) else seconds)

    def __del__(self) -> None:
        upload: MultipartUpload | None = getattr(self, "_upload", None)  # Ctrl-C may have kept it from being made.
        # Threads that the interpreter's end has stopped may hold locks for ever; uploads were given up before that.
        if upload is not None and self._runtime.pid == os.getpid() and not is_finalizing():
            upload.abandon()  # Unless it is over, which Ctrl-C in `close` may have kept it from.
            self._runtime.budget.give_back(self._charge)  # Once more, where Ctrl-C may have kept that from being done.

    def __reduce__(self) -> Any:
        raise TypeError(f"the upload of {self._target.uri} cannot be pickled; open one in the other process")

    def _abort(self, timeout: float) -> None:
        # Without the lock, which a `write` in another thread may hold while it waits for the network.
        if self._closed or self._aborted or self._runtime.pid != os.getpid() or is_finalizing():
            return
        self._aborted = True
        self._stop.set()
        self._stop.finish()
        upload = self._upload
        if upload is not None:
            upload.abort(timeout)
        if self._lock.acquire(timeout=timeout):
            try:
                self._closed = True
                if self._upload is not None and self._upload is not upload:
                    self._upload.abort(timeout)  # A `write` of another thread had just begun it.
                self._drop_buffers()
            finally:
                self._lock.release()

    def _fail(self, error: BaseException) -> None:
        self._error = str(error)
        if self._upload is not None:
            self._upload.abort(30.0 if isinstance(error, Exception) else INTERRUPT_SECONDS)
        self._drop_buffers()

    def _note_tear(self) -> None:
        """Fail for a write that is not all here, where Ctrl-C kept that from being noted."""
        if self._is_torn and self._error is None:
            self._fail(S3Exception("it was interrupted"))

    def _drop_buffers(self) -> None:
        self._part = Part()
        self._free = SimpleQueue()
        if self._upload is not None:
            self._runtime.budget.give_back(self._charge)

    def _check_open(self) -> None:
        if self._closed or self._aborted or self._is_closing:
            raise ValueError(f"the upload of {self._target.uri} is closed")
        self._note_tear()
        if self._error is not None:
            raise S3Exception(f"the upload of {self._target.uri} failed before: {self._error}")

    def _check_uninterrupted(self) -> None:
        """Fail in a write in whose midst a signal's handler, or another thread, has ended the stream."""
        if self._closed or self._aborted or self._error is not None:
            raise S3Exception(f"the upload of {self._target.uri} was closed or aborted while it was written to")

    def _check_process(self) -> None:
        if self._runtime.pid != os.getpid():
            raise S3Exception(
                f"the upload of {self._target.uri} belongs to process {self._runtime.pid} and cannot be used in its "
                "child; open one there"
            )

    def _check_size(self, more: int) -> None:
        most = MAX_PARTS * self._part_size
        if self._size + more > most:
            raise S3Exception(
                f"the upload of {self._target.uri} would have more than {MAX_PARTS} parts of {self._part_size} bytes, "
                f"S3's limit, at {self._size + more} bytes; pass the object's size as size_hint, or raise part_size"
            )

    def _append(self, view: memoryview, copy: bool) -> None:
        may_change = copy and not _is_bytes(view)
        self._refers = self._refers or not copy
        offset = 0
        while offset < len(view):
            self._check_uninterrupted()
            if self._part.size == self._part_size:
                self._send_part()
            count = min(len(view) - offset, self._part_size - self._part.size)
            # Else the end of large `bytes` would keep all of them for as long as its part waits for more.
            is_end = (
                copy and offset + count == len(view) > 2 * self._part_size and self._part.size + count < self._part_size
            )
            is_copied = may_change or is_end or count < _MIN_REFERRED
            if self._part.size == 0:
                self._part = self._begin_part(
                    count, fills=may_change or (is_copied and not self._refers), lent=not copy
                )
            piece = view[offset : offset + count]
            if is_copied:
                self._count_copy(count)
                self._part.copy(piece)
            else:
                self._refers = True
                self._part.refer(piece)
            self._size += count
            offset += count

    def _begin_part(self, count: int, *, fills: bool, lent: bool) -> Part:
        """Make the next part, as soon as there may be one more.

        Args:
            count: How many bytes come first.
            fills: Whether most of it is likely to be copied.
            lent: Whether its memory is the caller's, who answers for it.
        """
        if self._upload is None:
            # The first part grows, unless it comes whole, so that a small object costs little memory.
            return Part(new_buffer(count) if fills and count == self._part_size else None, is_counted=not lent)
        if lent:
            self._upload.wait_below(self._most_referred)
            return Part()
        buffer = self._take_right(self._most_copied if fills else self._most_referred)
        if not fills:
            return Part(is_counted=True)
        return Part(new_buffer(self._part_size) if buffer is None else buffer, is_counted=True)

    def _count_copy(self, count: int) -> None:
        """Count a part whose memory was to be the caller's, as soon as more than a little is copied into it."""
        part = self._part
        if self._upload is not None and not part.is_counted and part.copied + count > _MOST_UNCOUNTED:
            part.count(self._take_right(self._most_copied))

    def _send_part(self) -> None:
        """Hand the full part, or the last one, to the pool."""
        if self._upload is None:
            upload = MultipartUpload(
                self._runtime, self._target, self._headers, self._checksum, condition=self._condition
            )
            self._upload = upload
            upload.create()
            self._runtime.budget.take(self._charge, self._part_size)
        part, free = self._part, self._free
        self._number += 1
        self._part = Part()
        self._upload.submit_part(self._number, part.pieces(), lambda: _put_back(part, free))

    def _take_right(self, most: int) -> bytearray | None:
        """The right to hold one more part, within the bounds or as soon as one is sent; with a buffer if it has one.

        Args:
            most: How many may be on their way.
        """
        assert self._upload is not None
        while True:
            self._upload.raise_error()
            in_flight = self._upload.in_flight
            if in_flight < most:
                with suppress(Empty):
                    return self._free.get_nowait()
                if in_flight == 0 or self._runtime.budget.try_take(self._charge, self._part_size):
                    return None
            self._upload.wait_below(in_flight)

    def _finish(self) -> None:
        if self._upload is None:
            self._put_at_once()
            return
        if self._part.size:
            self._send_part()
        self._upload.complete()

    def _put_at_once(self) -> None:
        runtime, target = self._runtime, self._target
        body = self._part.own_pieces()
        checksum = checksum_of(body, self._checksum)
        headers = {**self._headers, **checksum_headers(self._checksum, checksum)}

        def send(conditions: dict[str, str]) -> BaseHTTPResponse:
            request = Request(
                "PUT", target.bucket, target.key, headers={**headers, **conditions}, body=body, stop=self._stop
            )
            return runtime.rest.change(request)

        def find_any() -> ObjectInfo | None:
            return wait_for(runtime.pool.submit(find, runtime, target))

        try:
            answer = send_on(self._condition, send, find_any, lambda: self._is_in_place(body))
        except Refused as refused:
            raise refused.translated_change() from None
        if answer is not None and not answer.headers.get("ETag"):
            error = S3Exception(
                f"PUT of {self._target.uri} failed: the answer is none of an S3 store, for it names no ETag; check the "
                "endpoint and the proxy, and look whether the object is in place"
            )
            error.in_doubt = True
            raise error

    def _is_in_place(self, body: Pieces) -> bool | None:
        """Whether the object in place has these bytes; None where that cannot be found out."""
        size = sum(map(len, body))
        try:
            found = GetObjectStream(self._runtime, self._target, end=size + 1).read_all()
        except NoSuchKeyError:
            return False
        except S3Exception:
            return None
        return found == b"".join(body)


def _put_back(part: Part, free: SimpleQueue[bytearray | None]) -> None:
    """Let another part be held in a part's place, and its buffer be used again, now that its bytes are sent."""
    buffer = part.buffer
    part.drop()
    if part.is_counted:
        free.put(buffer)


def _is_bytes(view: memoryview) -> bool:
    """Whether memory is that of `bytes`, which stay as they are; of most of one, since all of it is kept until then."""
    return type(view.obj) is bytes and len(view.obj) <= 2 * len(view)


def _flat(data: Any) -> memoryview:
    """A buffer's bytes in a row; only a layout with gaps is copied for it."""
    if isinstance(data, str):
        raise TypeError("an object is made of bytes, got str; encode it first")
    view = memoryview(data)
    if view.nbytes == 0:
        return memoryview(b"")
    return view.cast("B") if view.c_contiguous else memoryview(view.tobytes())
