"""Reads ahead over the coming objects, in order, within a bound of requests and of bytes."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from operator import itemgetter

from s3torch_datasets._fork_count import ForkCount
from s3torch_datasets._fork_safe_lock import ForkSafeLock
from s3torch_datasets._object_source import ObjectSource

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
        memory_limit_bytes: What the client may hold. A 36th of it bounds what comes; three times as much where sizes
            are not known and are taken to be like those of the objects before. It is divided by the number of
            look-aheads in this process for which something comes: one that began alone goes down to its part as it is
            used, and one that is not used any more keeps what it has, and leaves the others their parts.
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
        # Numbers behind the current one's, without gaps; each with its source and the bytes that it counts for.
        self._coming: deque[tuple[int, ObjectSource, int]] = deque()
        self._number = -1
        self._current: ObjectSource | None = None
        self._usual_size: float | None = None  # Of the objects that were handed out and opened last.
        self._armed = False
        self._forks = ForkCount.now
        self._lock = ForkSafeLock()  # A reader may be read, and begin to read ahead, in another thread.
        _look_aheads.add(weakref.ref(self, _look_aheads.discard))

    @property
    def coming_bytes(self) -> int:
        """Bytes on their way or waiting, as far as they are known."""
        return sum(map(itemgetter(2), self._coming))

    @property
    def is_ahead(self) -> bool:
        """Whether anything is on its way or waiting, in this process."""
        return bool(self._coming) and self._forks == ForkCount.now

    def get(self, number: int) -> ObjectSource | None:
        """Returns the source of a number: the one that was returned last, or the next; None behind the last one."""
        with self._lock.of_process():
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
            self._coming[0][1].discard()
            self._coming.popleft()  # not before: after Ctrl-C all of it is done again, which does no harm

    def _arm(self) -> None:
        if not self._armed:
            self._armed = True
            with self._lock.of_process():
                self._fill()

    def _learn_from(self, source: ObjectSource) -> None:
        size = source.known_size_bytes
        if size is not None:
            usual = size if self._usual_size is None else self._usual_size
            self._usual_size = usual + _WEIGHT_OF_THE_LAST * (size - usual)

    def _fill(self) -> None:
        self._forks = ForkCount.now
        while self._current is not None and len(self._coming) < self._max_coming:
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
            if self._coming and self.coming_bytes + size > limit // count_look_aheads():
                return
            self._coming.append((number, source, size))
            source.prefetch()


_look_aheads: set[weakref.ref[LookAhead]] = set()


def count_look_aheads() -> int:
    """Returns the number of look-aheads in this process for which something comes."""
    found = [reference() for reference in list(_look_aheads)]  # in one step: other threads make some
    return sum(one is not None and one.is_ahead for one in found)
