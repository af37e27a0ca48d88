"""The end of requests that nobody wants any more."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from ._outcome import Outcome

# How long whoever was interrupted waits for what is still on its way.
INTERRUPT_SECONDS = 0.5


class Stop:
    """Ends requests: no attempt is begun any more, and no body that is on its way is sent to its end.

    What comes in part is not stored, so that nothing of a write that was given up comes late, over what was written
    after it.
    """

    __slots__ = ("_event", "_sending", "_waiting", "outcome")

    def __init__(self) -> None:
        self.outcome: Outcome[Any] | None = None  # Of the request, where that is one and was handed to the pool.
        self._event = threading.Event()
        # What cuts each connection: one whose body is being sent, and one whose answer is awaited.
        self._sending: set[Callable[[], None]] = set()
        self._waiting: set[Callable[[], None]] = set()

    def is_set(self) -> bool:
        """Whether the requests are over."""
        return self._event.is_set()

    def set(self) -> None:
        """End the requests; waits for nothing."""
        self._event.set()
        for cut in list(self._sending):
            cut()

    def wait(self, seconds: float) -> None:
        """Wait for the end, but no longer than so many seconds."""
        self._event.wait(seconds)

    def finish(self) -> None:
        """Wait a moment for the answer to what was sent to its end, and no longer: the system may be sending it still.

        What the store has not got by then is dropped before this returns.
        """
        if self.outcome is not None and not self.outcome.wait(INTERRUPT_SECONDS):
            for cut in list(self._waiting):
                cut()
            self.outcome.wait(INTERRUPT_SECONDS)  # By its thread, which closes the connection.

    def sending(self, cut: Callable[[], None]) -> AbstractContextManager[None]:
        """Have a connection cut when the end comes within the block, in which a body is sent."""
        return _listed(self._sending, cut)

    def waiting(self, cut: Callable[[], None]) -> AbstractContextManager[None]:
        """Have a connection cut by `finish` within the block, in which an answer is awaited."""
        return _listed(self._waiting, cut)


@contextmanager
def _listed(cuts: set[Callable[[], None]], cut: Callable[[], None]) -> Iterator[None]:
    cuts.add(cut)
    try:
        yield
    finally:
        cuts.discard(cut)
