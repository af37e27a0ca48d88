"""`GetObjectStream`: one object, or a range of it, by parallel ranged GETs."""

from __future__ import annotations

from operator import index
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ._head import Target, changed_error
from ._info import ObjectInfo
from ._memory import Destination, Slot
from ._outcome import Outcome
from ._pool import wait_for
from ._ranges import fill_range
from ._window import Window

if TYPE_CHECKING:
    from ._runtime import Runtime


class GetObjectStream:
    """The bytes of an object in order; made by `S3Client.get_object`.

    Nothing is sent before the first use. The first request is a ranged GET whose answer tells size and ETag; all later
    ranges ask for that ETag (`If-Match`), so that the bytes are of one version or there is an error. Iterating gives
    chunks through a window of ranges that starts small and grows while the reader keeps up; `read_into` and `read_all`
    put parallel ranges straight into place. Use it from one thread at a time.

    A stream that a process inherited by fork is unusable there and raises; open a new one.

    Example:
        >>> with client.get_object("bucket", "images/0001.jpg") as stream:  # doctest: +SKIP
        ...     data = stream.read_all()
    """

    def __init__(
        self,
        runtime: Runtime,
        target: Target,
        *,
        object_info: ObjectInfo | None = None,
        start: int | None = None,
        end: int | None = None,
        etag: str | None = None,
    ) -> None:
        start, end = index(start or 0), None if end is None else index(end)  # NumPy's numbers have other bounds.
        if start < 0:
            raise ValueError(f"start of {target.uri} is {start}; it must be at least 0")
        if end is not None and end < start:
            raise ValueError(f"end of {target.uri} is {end}, which is before its start {start}")
        self._runtime = runtime
        self._target = target
        self._limit = end
        self._window = Window(runtime, target, start=start, limit=end, etag=etag, hint=object_info)
        self._chunks = 0

    @property
    def bucket(self) -> str:
        """The bucket."""
        return self._target.bucket

    @property
    def key(self) -> str:
        """The key."""
        return self._target.key

    @property
    def object_info(self) -> ObjectInfo:
        """What S3 says about the object: as given with an ETag, or in the first answer, which is then waited for."""
        return self._window.info or self._window.confirmed()

    def confirm(self) -> ObjectInfo:
        """What S3 says about the object in the first answer, which is waited for: never what was given.

        Raises:
            ValueError: The stream was closed before that came.
            S3Exception: The request failed.
        """
        return self._window.confirmed()

    @property
    def is_described(self) -> bool:
        """Whether `object_info` is known and waits for nothing."""
        return self._window.info is not None

    @property
    def window(self) -> int:
        """The most bytes that iterating holds ahead of the reader; 16 parts unless it is set."""
        return self._window.size

    @window.setter
    def window(self, size: int) -> None:
        size = index(size)
        if size < 1:
            raise ValueError(f"window of {self._target.uri} is {size}; it must be a number of bytes of at least 1")
        self._window.size = size

    @property
    def closed(self) -> bool:
        """Whether `close()` was called."""
        return self._window.is_closed

    def tell(self) -> int:
        """The offset in the object of the next byte to come."""
        return self._window.position

    def prefetch(self) -> None:
        """Ask for the beginning without waiting for it.

        That is the whole object where it fits into one part, as far as the size is known, and otherwise the first part:
        by one request, or by several at once where size and ETag are known, and it is longer than a small range.
        """
        self._window.resume()
        self._window.prefetch()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        """The next chunk, as a buffer of at least one byte."""
        window = self._window
        window.resume()
        chunk = window.take()
        if len(chunk) == 0:
            raise StopIteration
        window.position += len(chunk)
        self._chunks += 1
        if self._chunks > 1:
            window.read_ahead()  # The reader came back for more: now it pays, while it works on this chunk.
        return chunk

    def read_into(self, buffer: Any) -> int:
        """Fill a buffer from the current position, by parallel ranges straight into place.

        Args:
            buffer: A writable C-contiguous buffer.

        Returns:
            How many bytes were written: the buffer's length, or fewer at the object's end.

        Raises:
            TypeError: The buffer is not writable or not contiguous.
            S3Exception: A request failed; no byte is written to the buffer after that, and the position is as before.
        """
        self._window.resume()
        destination = Destination.of_buffer(buffer)
        try:
            with self._window.all_or_nothing():
                filled = self._read_into(destination)
        except Exception:
            destination.release()
            raise
        destination.release()
        return filled

    def read_all(self) -> bytes:
        """Read everything that is left.

        Returns:
            The bytes, filled in place: they are held once.

        Raises:
            S3Exception: A request failed; the position is as before.
        """
        window = self._window
        window.resume()
        if window.is_empty and not window.has_answer:
            window.prefetch()
        with window.all_or_nothing():
            end = window.end()
            whole = window.take_all(end)
            if whole is None:
                destination, whole = Destination.of_new_bytes(max(0, end - window.position))
                self._read_into(destination)
        return whole

    def close(self) -> None:
        """Stop the transfers and free what was read ahead; harmless when called again."""
        self._window.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_window"):  # A stream that failed in its constructor has none.
            self._window.close()

    def __reduce__(self) -> Any:
        raise TypeError(f"the stream of {self._target.uri} cannot be pickled; pickle the client and open it again")

    def _read_into(self, destination: Destination) -> int:
        """Fill the destination from what was read ahead, and with what comes behind that at the same time."""
        window = self._window
        ahead = behind = 0
        if window.is_coming:
            end = window.end()
            ahead = min(window.planned, end) - window.position
            behind = max(0, min(destination.size, end - window.position) - ahead)
        if behind:
            begin, etag = window.position + ahead, window.confirmed().etag
            try:
                fill_range(self._runtime, self._target, begin, begin + behind, destination, ahead, etag)
            except BaseException:
                window.start_over()
                raise
        filled = self._drain_into(destination)
        if not behind:
            return filled + (self._fill(destination, filled) if filled < destination.size else 0)
        if filled != ahead:  # The same ETag with another size.
            raise changed_error(self._target)
        window.go_to(window.position + behind)
        return filled + behind

    def _drain_into(self, destination: Destination) -> int:
        """Copy what was read ahead."""
        window = self._window
        filled = 0
        while filled < destination.size and not window.is_empty:
            view = memoryview(window.take()).cast("B")
            count = min(len(view), destination.size - filled)
            if count:
                destination.slot(filled, filled + count).write(view[:count])
            filled += count
            window.position += count
            if count < len(view):
                window.put_back(view[count:])
            if not len(view):
                break
        return filled

    def _fill(self, destination: Destination, filled: int) -> int:
        """Fill the destination from the current position on, when nothing read ahead is left."""
        window = self._window
        window.go_to(window.position)
        wanted = destination.size - filled
        first: Outcome[Any] | None = None
        slot: Slot | None = None
        try:
            if not window.has_answer:
                size = min(self._runtime.config.part_size, wanted)
                if self._limit is not None:
                    size = min(size, max(0, self._limit - window.position))
                slot = destination.slot(filled, filled + size)
                first = window.submit_first(size, slot)
            # Only the head of the first answer is waited for: the other ranges go out while its body still comes.
            count = max(0, min(wanted, window.end() - window.position))
            begin, end = window.planned, window.position + count
            if begin < end:
                offset, etag = filled + begin - window.position, window.confirmed().etag
                fill_range(self._runtime, self._target, begin, end, destination, offset, etag)
            if first is not None:
                wait_for(first)
        except BaseException:
            if slot is not None:
                slot.close()
            window.start_over()
            raise
        window.go_to(window.position + count)
        return count
