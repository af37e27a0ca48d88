"""Reads ahead over the coming objects, in order, within a bound of requests and of bytes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from s3torch_datasets._fork_count import ForkCount
from s3torch_datasets._object_source import ObjectSource


class ByteBudget:
    """Bytes that all look-aheads of a process may have on their way or waiting; asking never waits.

    They are taken in the name of a holder, which the caller has before it asks: Ctrl-C may come between any two steps,
    and who gives back in any case, even twice, gives back exactly what was taken.
    """

    def __init__(self) -> None:
        self._forks = ForkCount.now
        self._held: dict[object, int] = {}
        self._lock = threading.RLock()  # reentrant for a signal's handler
        self._returned: deque[object] = deque()

    @property
    def used_bytes(self) -> int:
        """Bytes taken now, in this process."""
        if self._forks != ForkCount.now:
            return 0
        with self._lock:
            return self._settle()

    def try_take(self, holder: object, size_bytes: int, limit_bytes: int) -> bool:
        """Takes bytes where the limit allows it, or nothing else is taken, and says whether it did."""
        if self._forks != ForkCount.now:
            self.__init__()  # type: ignore[misc]  # the lock and the sum are the parent's
        with self._lock:
            used = self._settle()
            if used and used + size_bytes > limit_bytes:
                return False
            self._held[holder] = size_bytes
            return True

    def give_back(self, holder: object) -> None:
        """Gives back what a holder took in this process, if that is anything.

        Without the lock: destructors call this, which the garbage collector may run while this very thread holds it.
        """
        if self._forks == ForkCount.now:
            self._returned.append(holder)

    def _settle(self) -> int:
        with suppress(IndexError):  # a handler may have settled all of it within a step.
            while True:
                holder = self._returned[0]
                self._held.pop(holder, None)
                if self._returned[0] is holder:
                    self._returned.popleft()  # not before: Ctrl-C may come behind this call
        return sum(self._held.values())


PROCESS_BUDGET = ByteBudget()

# Of the client's memory limit: 28 MiB by default, with which objects of 5 MB came at 680 MB/s, and at 1,280 with 64 MiB
# (at 30 ms and 90 MB/s per connection).
_SHARE = 36
# Objects of unknown size are not fetched in several ranges at once: more of them have to be on their way.
_UNKNOWN_SIZES_FACTOR = 3
# Each counts for so much of a part at least: when all of them prove to be longer than a part, they hold about what the
# client may hold.
_LEAST_SHARE = _SHARE // _UNKNOWN_SIZES_FACTOR
_WEIGHT_OF_THE_LAST = 1 / 8


class LookAhead:
    """Hands out sources in order, while the ones behind are on their way.

    The sources go by numbers, so that Ctrl-C loses none: what it interrupts is asked for again by the same number.

    It starts to read ahead when a source that was handed out is first opened as a whole, and stops sending when one was
    handed out and not opened: objects that nobody reads cost no request. `close` stops everything that is on its way.

    Args:
        get_source: Returns the object of a number; None behind the last one.
        max_objects: Most objects on their way or waiting, the current one included.
        memory_limit_bytes: What the client may hold. A 36th of it bounds all look-aheads in this process; three times
            as much where sizes are not known and are taken to be like those of the objects before.
        part_size_bytes: What is fetched ahead of one object at most, and so the most that it takes of the bound.
        is_ready: Whether the object of a number can be had without waiting; reading ahead does not wait for it.
    """

    def __init__(
        self,
        get_source: Callable[[int], ObjectSource | None],
        *,
        max_objects: int,
        memory_limit_bytes: int,
        part_size_bytes: int,
        is_ready: Callable[[int], bool] = lambda number: True,
    ) -> None:
        self._get_source = get_source
        self._max_coming = max_objects - 1
        self._max_bytes = memory_limit_bytes // _SHARE
        self._part_size = part_size_bytes
        self._is_ready = is_ready
        # Numbers behind the current one's, without gaps; each with its source and the holder of its bytes.
        self._coming: deque[tuple[int, ObjectSource, object]] = deque()
        self._number = -1
        self._current: ObjectSource | None = None
        self._usual_size: float | None = None  # Of the objects that were handed out and opened last.
        self._armed = False

    def get(self, number: int) -> ObjectSource | None:
        """Returns the source of a number: the one that was returned last, or the next; None behind the last one."""
        if self._current is None or self._number != number:
            last = self._current
            if last is not None:
                last.on_whole_read = None
                if last.was_opened:
                    self._learn_from(last)
                else:
                    self._armed = False
            source = self._coming[0][1] if self._coming else self._get_source(number)
            if source is None:
                return None
            source.on_whole_read = self._arm
            self._number, self._current = number, source
        if self._coming and self._coming[0][0] == self._number:
            PROCESS_BUDGET.give_back(self._coming[0][2])
            self._coming.popleft()
        if self._armed:
            self._fill()
        return self._current

    def close(self) -> None:
        """Stops what is on its way."""
        self._armed = False
        if self._current is not None:
            self._current.on_whole_read = None
            self._current = None
        while self._coming:
            _, source, holder = self._coming[0]
            source.discard()
            PROCESS_BUDGET.give_back(holder)
            self._coming.popleft()  # not before: after Ctrl-C all of it is done again, which does no harm

    def _arm(self) -> None:
        if not self._armed:
            self._armed = True
            self._fill()

    def _learn_from(self, source: ObjectSource) -> None:
        size = source.known_size_bytes
        if size is not None:
            usual = size if self._usual_size is None else self._usual_size
            self._usual_size = usual + _WEIGHT_OF_THE_LAST * (size - usual)

    def _fill(self) -> None:
        while len(self._coming) < self._max_coming:
            number = (self._coming[-1][0] if self._coming else self._number) + 1
            source = self._get_source(number) if self._is_ready(number) else None
            if source is None:
                return
            size, limit = source.known_size_bytes, self._max_bytes
            if size is None:
                usual = self._part_size if self._usual_size is None else int(self._usual_size)
                size = max(usual, self._part_size // _LEAST_SHARE)
                limit *= _UNKNOWN_SIZES_FACTOR
            size = min(size, self._part_size)
            holder = object()
            self._coming.append((number, source, holder))  # first of all, so that its bytes are given back in any case
            if not PROCESS_BUDGET.try_take(holder, size, limit):
                self._coming.pop()
                return
            source.prefetch()
