"""An iterator that several threads may share: each gets samples of its own."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Iterator
from typing import Generic

from s3torch_datasets._dataset import T_co
from s3torch_datasets._fork_count import ForkCount


class SharedIterator(Iterator[T_co], Generic[T_co]):
    """Makes its samples one at a time, whoever asks.

    A forked child has a lock of its own: a thread that is not there may hold its parent's.
    """

    def __init__(self) -> None:
        self._locks: dict[int, threading.RLock] = {}  # reentrant for a signal's handler

    def __next__(self) -> T_co:
        with self._locks.setdefault(ForkCount.now, threading.RLock()):
            return self._next()

    @abstractmethod
    def _next(self) -> T_co:
        """Returns the next sample, or raises StopIteration."""
