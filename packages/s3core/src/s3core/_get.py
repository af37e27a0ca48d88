"""`GetObjectStream`: one object, or a range of it, by parallel ranged GETs."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ._answer import Stopped
from ._exceptions import S3Exception
from ._fetch import Wish, fetch
from ._head import Target, changed_error, head
from ._info import ObjectInfo
from ._memory import Destination, Slot
from ._outcome import Outcome
from ._plan import (
    AHEAD_RANGE,
    FIRST_RANGE,
    SMALL_RANGE,
    WINDOW_PARTS,
    next_range_size,
    next_window,
    split_evenly,
)
from ._pool import wait_for
from ._ranges import fill_range
from ._small import SmallRange, is_small_range

if TYPE_CHECKING:
    from ._runtime import Runtime

T = TypeVar("T")


@dataclass(slots=True)
class _Part:
    """A range in flight.

    Args:
        start: First byte.
        end: One past the last byte that was asked for.
        data: Its bytes; None while it is handed to the pool.
        charge: In whose name bytes are taken from the client's budget for it.
        place: Where its bytes go, if that is a slice of a `bytes` that its neighbours fill too.
    """

    start: int
    end: int
    data: Outcome[Any] | None
    charge: object
    place: memoryview | None = None


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
        if start is not None and start < 0:
            raise ValueError(f"start of {target.uri} is {start}; it must be at least 0")
        if end is not None and end < (start or 0):
            raise ValueError(f"end of {target.uri} is {end}, which is before its start {start or 0}")
        self._runtime = runtime
        self._target = target
        self._limit = end
        self._etag = etag
        # What was said before the first answer is only a hint: the object may have been replaced since.
        self._hint = object_info
        self._answer: Outcome[ObjectInfo] | None = None
        self._position = self._planned = start or 0
        self._rest: tuple[int, memoryview] | None = None  # Where it begins, and what is left of the last chunk.
        self._parts: deque[_Part] = deque()
        self._window_size = max(1, min(WINDOW_PARTS, runtime.config.concurrency)) * runtime.config.part_size
        self._parts_ahead = 1
        self._range_size = 0
        self._chunks = 0
        self._wish = Wish()
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
    def object_info(self) -> ObjectInfo:
        """What S3 says about the object: as given, or as the first answer says, which is then waited for."""
        return self._answered or self._hint or self._confirmed()

    @property
    def is_described(self) -> bool:
        """Whether `object_info` is known and waits for nothing."""
        return self._hint is not None or self._answered is not None

    @property
    def window(self) -> int:
        """The most bytes that iterating holds ahead of the reader; 16 parts unless it is set."""
        return self._window_size

    @window.setter
    def window(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"window of {self._target.uri} is {size}; it must be a number of bytes of at least 1")
        self._window_size = size

    @property
    def closed(self) -> bool:
        """Whether `close()` was called."""
        return self._closed

    def tell(self) -> int:
        """The offset in the object of the next byte to come."""
        return self._position

    def prefetch(self) -> None:
        """Ask for the beginning without waiting for it.

        That is the whole object where it fits into one part, as far as the size is known, and otherwise the first part:
        by one request, or by several at once where size and ETag are known, and it is longer than a small range.
        """
        self._begin()
        if self._answer is not None:
            return
        remaining = self._hinted_remaining()
        part_size = self._runtime.config.part_size
        size = part_size if remaining is None else min(part_size, remaining)
        if self._hint is not None and self._etag is not None and size > SMALL_RANGE:
            self._submit_in_place(size)
        else:
            self._submit_first(size)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        """The next chunk, as a buffer of at least one byte."""
        self._begin()
        if self._rest is not None:
            chunk = self._rest[1]
            self._position += len(chunk)
            self._rest = None
            return chunk
        data = self._next_part()
        if len(data) == 0:
            raise StopIteration
        self._position += len(data)
        self._chunks += 1
        if self._chunks > 1:
            # The reader came back for more: now it pays to read ahead, while it works on this chunk.
            self._parts_ahead = next_window(self._parts_ahead, self._runtime.config.concurrency)
            self._top_up()
        return data

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
        self._begin()
        destination = Destination.of_buffer(buffer)
        try:
            with self._all_or_nothing():
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
        self._begin()
        if self._rest is None and not self._parts and self._answer is None:
            self.prefetch()
        end = self._end()
        size = max(0, end - self._position)
        if (whole := self._bytes_on_their_way(size)) is not None:
            with self._all_or_nothing():
                while self._parts:
                    self._position += len(self._next_part())
                if self._position != end:  # The same ETag with another size.
                    raise changed_error(self._target)
            return whole
        if self._rest is None and len(self._parts) == 1 and self._parts[0].end >= end:
            data = self._next_part()
            self._position += len(data)
            return data if isinstance(data, bytes) else bytes(memoryview(data))
        destination, data = Destination.of_new_bytes(size)
        with self._all_or_nothing():
            self._read_into(destination)
        return data

    def close(self) -> None:
        """Stop the transfers and free what was read ahead; harmless when called again."""
        if self._closed and not self._parts:
            return
        self._closed = True
        self._rest = None
        if self._runtime.pid == os.getpid():  # A child must not shut down connections, which are its parent's too.
            self._wish.end()
            self._drop_parts()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # A stream that failed in its constructor has no `_closed`; one whose closing was interrupted may have parts.
        if not getattr(self, "_closed", True) or getattr(self, "_parts", None):
            self.close()

    def __reduce__(self) -> Any:
        raise TypeError(f"the stream of {self._target.uri} cannot be pickled; pickle the client and open it again")

    def _check_usable(self) -> None:
        if self._closed:
            raise ValueError(f"the stream of {self._target.uri} is closed")
        if self._runtime.pid != os.getpid():
            raise S3Exception(
                f"the stream of {self._target.uri} was opened in process {self._runtime.pid} and cannot be used in its "
                "child; open it again there"
            )

    def _begin(self) -> None:
        """Before each use: drop what was read ahead, unless it follows the position without a gap.

        It does not when Ctrl-C came between two steps of an earlier use; the position alone is then right.
        """
        self._check_usable()
        if self._wish.is_over or not self._is_continuous():
            self._start_over()
        elif self._rest is None and not self._parts:
            self._planned = self._position

    def _is_continuous(self) -> bool:
        end = self._position
        if self._rest is not None:
            start, view = self._rest
            if start != end:
                return False
            end += len(view)
        for part in self._parts:
            if part.start != end or part.data is None:
                return False
            end = part.end
        return not self._parts or (self._planned == end and self._answer is not None)

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Stay at the position when what moves it fails: a caller who asks again gets all of it."""
        position = self._position
        try:
            yield
        except BaseException:
            self._position = position
            raise

    @property
    def _answered(self) -> ObjectInfo | None:
        """What the first answer says, if it has come."""
        if self._answer is None or not self._answer.done() or self._answer.exception() is not None:
            return None
        return self._answer.result()

    def _hinted_remaining(self) -> int | None:
        """How many bytes are left, as far as is known before the first answer; at least 1, since a request must ask."""
        if self._hint is not None:
            end = self._hint.size if self._limit is None else min(self._hint.size, self._limit)
        elif self._limit is not None:
            end = self._limit
        else:
            return None
        return max(1, end - self._planned)

    def _submit_first(self, size: int, slot: Slot | None = None) -> _Part | None:
        """Send the request whose answer tells size and ETag; None where an empty range asks for nothing."""
        if self._parts:
            self._start_over()  # What Ctrl-C left: ranges whose first answer is not known may be of another version.
        if self._limit is not None:
            size = min(size, self._limit - self._planned)
            if size <= 0:
                # An empty range cannot be asked for: a HEAD says whether there is an object, and of which size.
                self._answer = self._runtime.pool.submit(head, self._runtime, self._target)
                return None
        answer: Outcome[ObjectInfo] = Outcome()
        part = self._submit(size, slot=slot, answer=answer)
        self._answer = answer  # Not before: the answer to a request that was never sent would be waited for for ever.
        return part

    def _submit_in_place(self, size: int) -> None:
        """Send requests for the next bytes, of the version that was asked for, which together fill one `bytes`.

        It is made here and not in the threads that fill it: the C library keeps apart for each thread what that thread
        allocated, and so would hold as much memory again for each of them.
        """
        destination, data = Destination.of_new_bytes(size)
        for low, high in split_evenly(size, AHEAD_RANGE):
            answer: Outcome[ObjectInfo] | None = Outcome() if low == 0 else None
            self._submit(high - low, slot=destination.slot(low, high), place=memoryview(data)[low:high], answer=answer)
            if answer is not None:
                self._answer = answer

    def _bytes_on_their_way(self, size: int) -> bytes | None:
        """The `bytes` that all ranges in flight fill, if it is of this size."""
        if self._rest is not None or not self._parts or self._parts[0].place is None:
            return None
        whole: Any = self._parts[0].place.obj
        came = sum(len(part.place) for part in self._parts if part.place is not None and part.place.obj is whole)
        return whole if came == len(whole) == size else None

    def _submit(
        self,
        size: int,
        *,
        slot: Slot | None = None,
        place: memoryview | None = None,
        answer: Outcome[ObjectInfo] | None = None,
        is_needed: bool = True,
    ) -> _Part | None:
        """Send the next range; it joins the window unless its bytes go to a slot that is the caller's.

        Args:
            size: How many bytes.
            slot: Where to put them; None to hold them.
            place: What shows them in the window when they are there; the slot is then this stream's own.
            answer: Told about the object; None for a range that is not the first.
            is_needed: Whether it is sent even if that exceeds the client's memory.

        Returns:
            None where there is no memory for a range that is not needed yet.
        """
        start, end = self._planned, self._planned + size
        etag = self._etag
        if answer is None and place is None and self._answer is not None:
            etag = wait_for(self._answer).etag
        runtime, target, wish = self._runtime, self._target, self._wish
        is_guess = answer is not None and self._hint is None and self._limit is None and slot is None

        def task(attempts_made: int | None = None) -> Any:
            try:
                on_answer = answer.set_result if answer is not None else None
                data = fetch(
                    runtime,
                    target,
                    start,
                    end,
                    etag=etag,
                    slot=slot,
                    wish=wish,
                    on_answer=on_answer,
                    is_guess=is_guess,
                    attempts_made=attempts_made,
                )
                return data if place is None or slot is None else place[: slot.filled]
            except BaseException as error:
                if answer is not None and not answer.done():
                    answer.set_exception(error)
                raise

        part = _Part(start, end, None, object(), place)
        if slot is None or place is not None:
            self._parts.append(part)  # First of all, so that what it is charged for is given back in any case.
            if is_needed:
                runtime.budget.take(part.charge, size)
            elif not runtime.budget.try_take(part.charge, size):
                self._parts.pop()
                return None
        if slot is None and not is_guess and is_small_range(runtime, target, size):
            small = SmallRange(runtime, target, start, end, etag, wish=wish, answer=answer, otherwise=task)
            runtime.exchanges.submit(small)
            part.data = small.data
        else:
            part.data = runtime.pool.submit(task)
        self._planned = end
        return part

    def _confirmed(self) -> ObjectInfo:
        """What the first answer says."""
        self._check_usable()
        if self._answer is None:
            self._submit_first(self._first_size())
        assert self._answer is not None
        return self._wait(self._answer)

    def _wait(self, outcome: Outcome[T]) -> T:
        """Wait for an answer or its bytes; when it failed, the next use asks again from where the reader is."""
        try:
            return wait_for(outcome)
        except Stopped:
            raise ValueError(f"the stream of {self._target.uri} was closed while it was being read") from None
        except BaseException:
            if outcome.done():  # Else it is the waiting that was interrupted.
                self._start_over()
            raise

    def _start_over(self) -> None:
        """Forget what was asked for ahead of the reader, so that no byte is skipped after a failure."""
        if self._answered is None:
            self._answer = None  # No byte was read yet: any version will do.
        self._wish.end()
        self._rest = None
        self._drop_parts()
        self._planned = self._position
        self._wish = Wish()  # Last of all: by the one that has ended, the next use sees that Ctrl-C came in between.

    def _first_size(self) -> int:
        """Size of the first range when a reader may want only a little: all of a small object, a bit of a large one."""
        remaining = self._hinted_remaining()
        if remaining is None:
            return 2 * FIRST_RANGE
        return remaining if remaining <= self._runtime.config.part_size else FIRST_RANGE

    def _end(self) -> int:
        size = self._confirmed().size
        return size if self._limit is None else min(size, self._limit)

    def _top_up(self) -> None:
        """Send further ranges, as far as window and memory allow; one in any case."""
        end = self._end()
        while self._planned < end and len(self._parts) < self._parts_ahead:
            size = min(next_range_size(self._range_size, self._runtime.config.part_size), end - self._planned)
            is_needed = not self._parts
            if is_needed:
                size = min(size, self._window_size)
            elif self._planned + size - self._position > self._window_size:
                return
            if self._submit(size, is_needed=is_needed) is None:
                return
            self._range_size = size

    def _next_part(self) -> Any:
        """Wait for the next range in order; empty at the end."""
        if self._answer is None:
            self._submit_first(self._first_size())
        if not self._parts:
            self._top_up()
        if not self._parts:
            return b""
        coming = self._parts[0].data
        assert coming is not None
        data = self._wait(coming)
        self._drop_first()
        return data

    def _drop_parts(self) -> None:
        while self._parts:
            self._drop_first()

    def _drop_first(self) -> None:
        self._runtime.budget.give_back(self._parts[0].charge)
        self._parts.popleft()  # Not before: after Ctrl-C it is given back again, which does no harm.

    def _read_into(self, destination: Destination) -> int:
        """Fill the destination from what was read ahead, and with what comes behind that at the same time."""
        ahead = behind = 0
        if self._parts:
            end = self._end()
            ahead = min(self._planned, end) - self._position
            behind = max(0, min(destination.size, end - self._position) - ahead)
        if behind:
            begin, etag = self._position + ahead, self._confirmed().etag
            try:
                fill_range(self._runtime, self._target, begin, begin + behind, destination, ahead, etag)
            except BaseException:
                self._start_over()
                raise
        filled = self._drain_into(destination)
        if not behind:
            return filled + (self._fill(destination, filled) if filled < destination.size else 0)
        if filled != ahead:  # The same ETag with another size.
            raise changed_error(self._target)
        self._position += behind
        self._planned = self._position
        return filled + behind

    def _drain_into(self, destination: Destination) -> int:
        """Copy what was read ahead."""
        filled = 0
        while filled < destination.size and (self._rest is not None or self._parts):
            view = self._rest[1] if self._rest is not None else memoryview(self._next_part()).cast("B")
            count = min(len(view), destination.size - filled)
            if count:
                destination.slot(filled, filled + count).write(view[:count])
            filled += count
            self._position += count
            self._rest = (self._position, view[count:]) if count < len(view) else None
            if not len(view):
                break
        return filled

    def _fill(self, destination: Destination, filled: int) -> int:
        """Fill the destination from the current position on, when nothing read ahead is left."""
        self._planned = self._position
        wanted = destination.size - filled
        part: _Part | None = None
        slot: Slot | None = None
        try:
            if self._answer is None:
                size = min(self._runtime.config.part_size, wanted)
                if self._limit is not None:
                    size = min(size, max(0, self._limit - self._position))
                slot = destination.slot(filled, filled + size)
                part = self._submit_first(size, slot)
            # Only the head of the first answer is waited for: the other ranges go out while its body still comes.
            count = max(0, min(wanted, self._end() - self._position))
            ahead = self._planned - self._position
            if count > ahead:
                etag = self._confirmed().etag
                begin = self._planned
                fill_range(
                    self._runtime, self._target, begin, self._position + count, destination, filled + ahead, etag
                )
            if part is not None and part.data is not None:
                wait_for(part.data)
        except BaseException:
            if slot is not None:
                slot.close()
            self._start_over()
            raise
        self._position += count
        self._planned = self._position
        return count
