"""Waking those that wait for something to change."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress


class Bell:
    """Rung again and again, for any number of threads that wait.

    Ctrl-C within the Python code of a `threading.Condition` becomes an error about its lock; here none is held.
    """

    def __init__(self) -> None:
        self._waiting: deque[threading.Lock] = deque()

    def ring(self) -> None:
        """Wake all that wait; safe in a destructor."""
        with suppress(IndexError):
            while True:
                self._waiting.popleft().release()

    def wait(self, is_over: Callable[[], bool], seconds: float) -> None:
        """Wait until it is rung.

        Args:
            is_over: Whether there is nothing to wait for; asked once, when no ring can be missed any more.
            seconds: How long to wait at most.
        """
        lock = threading.Lock()
        lock.acquire()
        self._waiting.append(lock)
        if not is_over():
            lock.acquire(timeout=seconds)
