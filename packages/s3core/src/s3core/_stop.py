"""The end of requests that nobody wants any more."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ._bell import Bell

# How long whoever was interrupted waits for what is still on its way.
INTERRUPT_SECONDS = 0.5


class Stop:
    """Ends requests: no attempt is begun any more, and no body that is on its way is sent to its end.

    What comes in part is not stored, so that nothing of a write that was given up comes late, over what was written
    after it.
    """

    __slots__ = ("_bell", "_exchanges", "_is_set")

    def __init__(self) -> None:
        self._bell = Bell()
        self._is_set = False  # No event of `threading`, whose lock Ctrl-C or a destructor may find held by its thread.
        self._exchanges: set[Exchange] = set()  # that are on their way

    def is_set(self) -> bool:
        """Whether the requests are over."""
        return self._is_set

    def set(self) -> None:
        """End the requests; waits for nothing, so that it is safe in a destructor."""
        self._is_set = True
        self._bell.ring()
        for exchange in list(self._exchanges):
            if exchange.is_sending:
                exchange.cut()

    def wait(self, seconds: float) -> None:
        """Wait for the end, but no longer than so many seconds."""
        self._wait_until(self.is_set, seconds)

    def finish(self) -> None:
        """Wait a moment for the answer to what was sent to its end, and no longer: the system may be sending it still.

        What the store has not got by then is dropped before this returns.
        """
        self._wait_until_quiet()
        for exchange in list(self._exchanges):
            exchange.cut()
        self._wait_until_quiet()

    @contextmanager
    def exchange(self, *, has_body: bool) -> Iterator[Exchange]:
        """A request is on its way within the block, and its connection is in order or closed after it."""
        exchange = Exchange(self, has_body)
        self._exchanges.add(exchange)
        try:
            yield exchange
        finally:
            self._exchanges.discard(exchange)
            self._bell.ring()

    def _wait_until_quiet(self) -> None:
        self._wait_until(lambda: not self._exchanges, INTERRUPT_SECONDS)

    def _wait_until(self, is_over: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not is_over() and (left := deadline - time.monotonic()) > 0:
            self._bell.wait(is_over, left)


class Exchange:
    """A request and its answer.

    Args:
        stop: Ends it.
        has_body: Whether the request has a body.

    Attributes:
        is_sending: Whether not all of the body is sent yet.
    """

    __slots__ = ("_cut", "_stop", "is_sending")

    def __init__(self, stop: Stop, has_body: bool) -> None:
        self._stop = stop
        self._cut: Callable[[], None] | None = None
        self.is_sending = has_body

    def begin(self, cut: Callable[[], None]) -> None:
        """Send the request on a connection, which this function cuts; raises as `check` does."""
        self._cut = cut
        self.check()

    def check(self) -> None:
        """Send no further.

        Raises:
            ConnectionAbortedError: The end has come.
        """
        if self._stop.is_set():
            raise ConnectionAbortedError("the request was given up")

    def cut(self) -> None:
        """Cut the connection."""
        if self._cut is not None:
            self._cut()
