"""The bound on what a client buffers."""

from __future__ import annotations

import threading
from collections import deque


class ByteBudget:
    """A number of bytes that may be held at a time; asking never waits, so that no two streams can block each other.

    Each stream may always hold one part (`take`), and asks for more with `try_take`.

    Args:
        limit: The bound in bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._used = 0
        self._lock = threading.Lock()
        self._returned: deque[int] = deque()

    @property
    def used(self) -> int:
        """Bytes held now."""
        with self._lock:
            self._settle()
            return self._used

    def try_take(self, size: int) -> bool:
        """Take `size` bytes where the bound allows it, and say whether it did."""
        with self._lock:
            self._settle()
            if self._used + size > self.limit:
                return False
            self._used += size
            return True

    def take(self, size: int) -> None:
        """Take `size` bytes in any case: what a stream needs to go on at all."""
        with self._lock:
            self._used += size

    def give_back(self, size: int) -> None:
        """Give back what was taken.

        Without the lock: destructors call this, which the garbage collector may run while this very thread holds it.
        """
        self._returned.append(size)

    def _settle(self) -> None:
        while self._returned:
            self._used -= self._returned[0]  # Not by what `popleft` returns: Ctrl-C may come behind that call.
            self._returned.popleft()
