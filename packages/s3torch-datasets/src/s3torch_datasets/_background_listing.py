"""A listing in the background: its first objects can be had while it goes on.

Nothing here waits for a lock: Ctrl-C may leave one locked, and a fork does. One thread writes, in an order that lets
others read at any time.
"""

from __future__ import annotations

import threading
import weakref
from bisect import bisect_right
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from s3torch_datasets._bucket_key_data import S3BucketKeyData
from s3torch_datasets._fork_count import ForkCount
from s3torch_datasets._index import ObjectIndex
from s3torch_datasets._sharding import Shard

OnListed = Callable[[int], Any]
OnPiece = Callable[[ObjectIndex], Any]
MakeIndex = Callable[[OnListed, OnPiece], ObjectIndex]

_WAIT_SECONDS = 0.2


def ignore(news: object) -> None:
    """Stands for who is told of what is listed, where nobody wants to know."""


class ListingPlan(NamedTuple):
    """How to list in the background.

    Args:
        make: Makes the index. It calls the first argument with the number of objects found since the last call, and the
            second with the pieces of the index, from its beginning on, as far as they are known before the whole.
        make_bar: Makes the bar for a wait; it is drawn in the thread that waits.
    """

    make: MakeIndex
    make_bar: Callable[[], Any]


class BackgroundListing:
    """Makes an index in a daemon thread, which stops when nobody holds this any more.

    The pieces take as much memory as the index in the making at most, and go when it is made.

    Args:
        plan: How to list.
    """

    def __init__(self, plan: ListingPlan) -> None:
        self._plan = plan
        self._forks = ForkCount.now
        self._pieces: list[ObjectIndex] = []
        self._starts: list[int] = []  # of each piece: the number of its first row
        self._rows = 0
        self._listed = 0
        self._index: ObjectIndex | None = None
        self._error: BaseException | None = None
        self._news: SimpleQueue[None] = SimpleQueue()
        threading.Thread(target=_work, args=(weakref.ref(self), plan.make), name="s3torch-listing", daemon=True).start()

    @property
    def index(self) -> ObjectIndex | None:
        """The whole index; None while it is not made."""
        return self._index

    @property
    def is_running(self) -> bool:
        """Whether a thread of this process is at work."""
        return self._forks == ForkCount.now and self._index is None and self._error is None

    def wait_for_index(self) -> ObjectIndex:
        """Returns the whole index."""
        self._wait_until(lambda: self._index is not None)
        assert self._index is not None
        return self._index

    def wait_for_first_piece(self) -> None:
        """Returns once the listing is under way; raises when it failed before that."""
        self._wait_until(lambda: bool(self._pieces) or self._index is not None)

    def has(self, row: int) -> bool:
        """Whether `get` would not wait."""
        return row < self._rows or self._index is not None

    def get(self, row: int) -> S3BucketKeyData | None:
        """Returns a row once it is there; None behind the last one. An error comes behind the rows found before it."""
        self._wait_until(lambda: self.has(row))
        pieces, starts, index = self._pieces, self._starts, self._index  # the index last: it replaces the others
        if index is not None:
            return index[row] if row < len(index) else None
        number = bisect_right(starts, row) - 1
        found: S3BucketKeyData = pieces[number][row - starts[number]]
        return found

    def _wait_until(self, is_there: Callable[[], bool]) -> None:
        if is_there():
            return
        with self._plan.make_bar() as bar:
            while True:
                error = self._error  # before looking: all that was found before it is there then
                if is_there():
                    return
                if error is not None:
                    raise error
                if self._forks != ForkCount.now:  # the thread is the parent's
                    self._index = self._plan.make(bar.update, ignore)
                    return
                with suppress(Empty):
                    self._news.get(timeout=_WAIT_SECONDS)  # in slices, so that Ctrl-C is seen everywhere
                bar.update(self._listed - bar.n)

    def _add_listed(self, count: int) -> None:
        self._listed += count

    def _add_piece(self, piece: ObjectIndex) -> None:
        self._pieces.append(piece)
        self._starts.append(self._rows)
        self._rows += len(piece)
        self._tell()

    def _end(self, outcome: ObjectIndex | BaseException) -> None:
        if isinstance(outcome, BaseException):
            self._error = outcome
        else:
            self._index = outcome
            self._pieces, self._starts = [], []  # others, for somebody may be reading these
        self._tell()

    def _tell(self) -> None:
        if self._news.empty():
            self._news.put(None)


class ListedObjects:
    """The objects of a shard by their number in it, from 0, as a listing finds them.

    Args:
        listing: The listing.
        shard: Where the shard begins, and its step; its size need not be known.
    """

    def __init__(self, listing: BackgroundListing, shard: Shard) -> None:
        self._listing = listing
        self._start = shard.start
        self._step = shard.step

    def has(self, number: int) -> bool:
        """Whether `get` would not wait."""
        return self._listing.has(self._start + number * self._step)

    def get(self, number: int) -> S3BucketKeyData | None:
        """Returns an object once it is there; None behind the last one."""
        return self._listing.get(self._start + number * self._step)


class _Dropped(Exception):
    """Nobody wants the index any more."""


def _work(wanted: weakref.ref[BackgroundListing], make: MakeIndex) -> None:
    def listing() -> BackgroundListing:
        found = wanted()
        if found is None:
            raise _Dropped
        return found

    outcome: ObjectIndex | BaseException
    try:
        outcome = make(lambda count: listing()._add_listed(count), lambda piece: listing()._add_piece(piece))
    except BaseException as error:
        outcome = error
    with suppress(_Dropped):
        listing()._end(outcome)
