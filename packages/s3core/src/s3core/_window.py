"""The ranges of an object that are on their way to a reader who goes from a start to an end."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

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
from ._small import SmallRange, is_small_range

if TYPE_CHECKING:
    from ._runtime import Runtime

T = TypeVar("T")


@dataclass(slots=True)
class _Range:
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


class Window:
    """Ranges of one version of an object, in a row from the reader's position on; for one thread at a time.

    Ctrl-C can come between any two steps: the position alone is right then, and `resume` drops what does not follow it.

    Args:
        runtime: The client.
        target: The object.
        start: The reader's first byte.
        limit: One past its last byte; None for the object's end.
        etag: The ETag that the object must have; None for the one of the first answer.
        hint: What is known of the object. It may have been replaced since: only the first answer is sure.
    """

    def __init__(
        self,
        runtime: Runtime,
        target: Target,
        *,
        start: int,
        limit: int | None,
        etag: str | None,
        hint: ObjectInfo | None,
    ) -> None:
        config = runtime.config
        self.position = self.planned = start  # Where the reader is, and one past the last byte that was asked for.
        self.size = max(1, min(WINDOW_PARTS, config.concurrency)) * config.part_size  # The most bytes ahead.
        self.is_closed = False
        self._runtime = runtime
        self._target = target
        self._limit = limit
        self._etag = etag
        self._hint = hint
        self._answer: Outcome[ObjectInfo] | None = None
        self._rest: tuple[int, memoryview] | None = None  # Where it begins, and what is left of the last chunk.
        self._ranges: deque[_Range] = deque()
        self._ranges_ahead = 1
        self._range_size = 0
        self._wish = Wish()

    @property
    def info(self) -> ObjectInfo | None:
        """What is known of the object without waiting; a hint without an ETag is good for planning only."""
        hint = self._hint
        return self._answered or (None if hint is None or hint.etag is None else hint)

    @property
    def has_answer(self) -> bool:
        """Whether the first request is on its way, or answered."""
        return self._answer is not None

    @property
    def is_coming(self) -> bool:
        """Whether ranges are on their way, or have come and wait to be taken."""
        return bool(self._ranges)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was read ahead: no range, and no rest of one that was taken."""
        return self._rest is None and not self._ranges

    def check_usable(self) -> None:
        """Refuse what is closed, or of another process.

        Raises:
            ValueError: It is closed.
            S3Exception: A process inherited it by fork.
        """
        if self.is_closed:
            raise ValueError(f"the stream of {self._target.uri} is closed")
        if self._runtime.pid != os.getpid():
            raise S3Exception(
                f"the stream of {self._target.uri} was opened in process {self._runtime.pid} and cannot be used in its "
                "child; open it again there"
            )

    def resume(self) -> None:
        """Before each use: drop what was read ahead, unless it follows the position without a gap.

        Raises:
            ValueError: See `check_usable`.
            S3Exception: See there.
        """
        self.check_usable()
        if self._wish.is_over or not self._is_continuous():
            self.start_over()
        elif self.is_empty:
            self.planned = self.position

    def go_to(self, position: int) -> None:
        """Go on at a position, with nothing ahead of it."""
        self.position = position
        self.planned = position

    def start_over(self) -> None:
        """Forget what was asked for ahead of the reader, so that no byte is skipped after a failure."""
        if self._answered is None:
            self._answer = None  # No byte was read yet: any version will do.
        self._wish.end()
        self._rest = None
        self._drop_ranges()
        self.planned = self.position
        self._wish = Wish()  # Last of all: by the one that has ended, the next use sees that Ctrl-C came in between.

    def close(self) -> None:
        """Stop the transfers and free what was read ahead; harmless when called again, and safe in a destructor."""
        if self.is_closed and not self._ranges:  # Closing may have been interrupted.
            return
        self.is_closed = True
        self._rest = None
        if self._runtime.pid == os.getpid():  # A child must not shut down connections, which are its parent's too.
            self._wish.end()
            self._drop_ranges()

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Stay at the position when what moves it fails: a caller who asks again gets all of it."""
        position = self.position
        try:
            yield
        except BaseException:
            self.position = position
            raise

    def confirmed(self) -> ObjectInfo:
        """What the first answer says, which is waited for.

        Raises:
            ValueError: It was closed before that came.
            S3Exception: The request failed.
        """
        answered = self._answered
        if answered is not None:
            return answered
        self.check_usable()
        if self._answer is None:
            self.submit_first(self._first_size())
        assert self._answer is not None
        return self._wait(self._answer)

    def end(self) -> int:
        """One past the reader's last byte, as the first answer says."""
        size = self.confirmed().size
        return size if self._limit is None else min(size, self._limit)

    def prefetch(self) -> None:
        """Ask for the beginning; see `GetObjectStream.prefetch`."""
        if self._answer is not None:
            return
        remaining = self._hinted_remaining()
        part_size = self._runtime.config.part_size
        size = part_size if remaining is None else min(part_size, remaining)
        if self._hint is not None and self._etag is not None and size > SMALL_RANGE:
            self._submit_in_place(size)
        else:
            self.submit_first(size)

    def submit_first(self, size: int, slot: Slot | None = None) -> Outcome[Any] | None:
        """Send the request whose answer tells size and ETag.

        Args:
            size: How many bytes to ask for, at most.
            slot: Where to put them, if they are not to be held here.

        Returns:
            What comes of it; None where an empty range asks for nothing.
        """
        if self._ranges:
            self.start_over()  # What Ctrl-C left: ranges whose first answer is not known may be of another version.
        if self._limit is not None:
            size = min(size, self._limit - self.planned)
            if size <= 0:
                # An empty range cannot be asked for: a HEAD says whether there is an object, and of which size.
                self._answer = self._runtime.pool.submit(head, self._runtime, self._target)
                return None
        answer: Outcome[ObjectInfo] = Outcome()
        data = self._submit(size, slot=slot, answer=answer)
        self._answer = answer  # Not before: the answer to a request that was never sent would be waited for for ever.
        return data

    def read_ahead(self) -> None:
        """Send further ranges, twice as many as the last time, for a reader who keeps coming back."""
        self._ranges_ahead = next_window(self._ranges_ahead, self._runtime.config.concurrency)
        self._top_up()

    def take(self) -> Any:
        """Wait for the next bytes in order; the caller moves the position.

        Returns:
            A buffer; an empty one at the end.

        Raises:
            ValueError: It was closed meanwhile.
            S3Exception: The request failed; the next use asks again from where the reader is.
        """
        if self._rest is not None:
            chunk = self._rest[1]
            self._rest = None
            return chunk
        if self._answer is None:
            self.submit_first(self._first_size())
        if not self._ranges:
            self._top_up()
        if not self._ranges:
            return b""
        coming = self._ranges[0].data
        assert coming is not None
        data = self._wait(coming)
        self._drop_first()
        return data

    def put_back(self, view: memoryview) -> None:
        """Have what was taken and is not used yet, from the position on, come again."""
        self._rest = (self.position, view)

    def take_all(self, end: int) -> bytes | None:
        """Wait for everything up to the end, and move there, where it is on its way in one piece.

        Args:
            end: One past the reader's last byte.

        Returns:
            None where it is not.

        Raises:
            S3Exception: A request failed; the position may have moved.
        """
        whole = self._shared_bytes(end - self.position)
        if whole is None and not (self._rest is None and len(self._ranges) == 1 and self._ranges[0].end >= end):
            return None
        if whole is None:
            data = self.take()
            self.position += len(data)
            return data if isinstance(data, bytes) else bytes(memoryview(data))
        while self._ranges:
            self.position += len(self.take())
        if self.position != end:  # The same ETag with another size.
            raise changed_error(self._target)
        return whole

    def _is_continuous(self) -> bool:
        end = self.position
        if self._rest is not None:
            start, view = self._rest
            if start != end:
                return False
            end += len(view)
        for one in self._ranges:
            if one.start != end or one.data is None:
                return False
            end = one.end
        return not self._ranges or (self.planned == end and self._answer is not None)

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
        return max(1, end - self.planned)

    def _first_size(self) -> int:
        """Size of the first range when a reader may want only a little: all of a small object, a bit of a large one."""
        remaining = self._hinted_remaining()
        if remaining is None:
            return 2 * FIRST_RANGE
        return remaining if remaining <= self._runtime.config.part_size else FIRST_RANGE

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

    def _shared_bytes(self, size: int) -> bytes | None:
        """The `bytes` that all ranges in flight fill, if it is of this size."""
        if self._rest is not None or not self._ranges or self._ranges[0].place is None:
            return None
        whole: Any = self._ranges[0].place.obj
        came = sum(len(one.place) for one in self._ranges if one.place is not None and one.place.obj is whole)
        return whole if came == len(whole) == size else None

    def _submit(
        self,
        size: int,
        *,
        slot: Slot | None = None,
        place: memoryview | None = None,
        answer: Outcome[ObjectInfo] | None = None,
        is_needed: bool = True,
    ) -> Outcome[Any] | None:
        """Send the next range; it joins the window unless its bytes go to a slot that is the caller's.

        Args:
            size: How many bytes.
            slot: Where to put them; None to hold them.
            place: What shows them in the window when they are there; the slot is then this window's own.
            answer: Told about the object; None for a range that is not the first.
            is_needed: Whether it is sent even if that exceeds the client's memory.

        Returns:
            What comes of it; None where there is no memory for a range that is not needed yet.
        """
        start, end = self.planned, self.planned + size
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

        one = _Range(start, end, None, object(), place)
        if slot is None or place is not None:
            self._ranges.append(one)  # First of all, so that what it is charged for is given back in any case.
            if is_needed:
                runtime.budget.take(one.charge, size)
            elif not runtime.budget.try_take(one.charge, size):
                self._ranges.pop()
                return None
        if slot is None and not is_guess and is_small_range(runtime, target, size):
            small = SmallRange(runtime, target, start, end, etag, wish=wish, answer=answer, otherwise=task)
            runtime.exchanges.submit(small)
            one.data = small.data
        else:
            one.data = runtime.pool.submit(task)
        self.planned = end
        return one.data

    def _wait(self, outcome: Outcome[T]) -> T:
        """Wait for an answer or its bytes; when it failed, the next use asks again from where the reader is."""
        try:
            return wait_for(outcome)
        except Stopped:
            raise ValueError(f"the stream of {self._target.uri} was closed while it was being read") from None
        except BaseException:
            if outcome.done():  # Else it is the waiting that was interrupted.
                self.start_over()
            raise

    def _top_up(self) -> None:
        """Send further ranges, as far as window and memory allow; one in any case."""
        end = self.end()
        while self.planned < end and len(self._ranges) < self._ranges_ahead:
            size = min(next_range_size(self._range_size), end - self.planned)
            is_needed = not self._ranges
            if is_needed:
                size = min(size, self.size)
            elif self.planned + size - self.position > self.size:
                return
            if self._submit(size, is_needed=is_needed) is None:
                return
            self._range_size = size

    def _drop_ranges(self) -> None:
        while self._ranges:
            self._drop_first()

    def _drop_first(self) -> None:
        self._runtime.budget.give_back(self._ranges[0].charge)
        self._ranges.popleft()  # Not before: after Ctrl-C it is given back again, which does no harm.
