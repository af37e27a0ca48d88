"""The bound on what a client buffers."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress

_MOST_RETURNED = 100


class ByteBudget:
    """A number of bytes that may be held at a time; asking never waits, so that no two streams can block each other.

    Each stream may always hold one part (`take`), and asks for more with `try_take`. Bytes are taken in the name of a
    holder, which the caller has before it asks and uses no more when it has given back: Ctrl-C may come between any two
    steps, and who gives back in any case, even twice, gives back exactly what was taken.

    Args:
        limit: The bound in bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held: dict[object, int] = {}
        self._lock = threading.RLock()  # Reentrant for a signal's handler.
        self._returned: deque[object] = deque()

    @property
    def used(self) -> int:
        """Bytes held now."""
        with self._lock:
            return self._settle()

    def try_take(self, holder: object, size: int) -> bool:
        """Take `size` bytes more where the bound allows it, and say whether it did."""
        with self._lock:
            if self._settle() + size > self.limit:
                return False
            self._held[holder] = self._held.get(holder, 0) + size
            return True

    def take(self, holder: object, size: int) -> None:
        """Take `size` bytes more in any case: what a stream needs to go on at all."""
        with self._lock:
            if len(self._returned) > _MOST_RETURNED:  # Else of many small objects the names would pile up.
                self._settle()
            self._held[holder] = self._held.get(holder, 0) + size

    def give_back(self, holder: object) -> None:
        """Give back all that a holder took, if that is anything.

        Without the lock: destructors call this, which the garbage collector may run while this very thread holds it.
        """
        self._returned.append(holder)

    def _settle(self) -> int:
        with suppress(IndexError):  # A handler may have settled all of it within a step.
            while True:
                holder = self._returned[0]
                self._held.pop(holder, None)
                if self._returned[0] is holder:
                    self._returned.popleft()  # Not before: Ctrl-C may come behind this call.
        return sum(self._held.values())
