"""A lock that a fork leaves free in the child."""

from __future__ import annotations

import threading

from s3torch_datasets._fork_count import ForkCount


class ForkSafeLock:
    """A lock among the threads of a process.

    A forked child has one of its own: a thread that is not there may hold its parent's.
    """

    def __init__(self) -> None:
        self._locks: dict[int, threading.RLock] = {}  # reentrant for a signal's handler

    def of_process(self) -> threading.RLock:
        """Returns the lock of this process, to be held by `with`."""
        return self._locks.setdefault(ForkCount.now, threading.RLock())
