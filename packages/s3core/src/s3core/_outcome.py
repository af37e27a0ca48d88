"""What a thread tells another, once."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class Outcome(Generic[T]):
    """A result or an error to come, which whoever sets it never waits to set.

    A `concurrent.futures.Future` has a lock that Ctrl-C can leave held by the thread that waits, between two steps of
    Python code; the thread that sets it would then stand still for ever, with all that depends on it.
    """

    __slots__ = ("_bell", "_error", "_is_done", "_result")

    def __init__(self) -> None:
        self._bell = threading.Lock()
        self._bell.acquire()
        self._is_done = False
        self._error: BaseException | None = None
        self._result: T

    def set_result(self, result: T) -> None:
        """Tell the result."""
        self._result = result
        self._is_done = True
        self._bell.release()

    def set_exception(self, error: BaseException) -> None:
        """Tell the error."""
        self._error = error
        self._is_done = True
        self._bell.release()

    def done(self) -> bool:
        """Whether it is told."""
        return self._is_done

    def exception(self) -> BaseException | None:
        """The error that was told."""
        return self._error

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is told.

        Args:
            timeout: Seconds to wait; None for as long as it takes.

        Returns:
            Whether it is.
        """
        if not self._is_done and self._bell.acquire(timeout=-1 if timeout is None else timeout):
            self._bell.release()  # For others that wait; whoever comes later sees that it is done.
        return self._is_done

    def result(self, timeout: float | None = None) -> T:
        """Wait for the result.

        Args:
            timeout: Seconds to wait; None for as long as it takes.

        Raises:
            TimeoutError: It is not told yet.
            BaseException: The error that was told.
        """
        if not self.wait(timeout):
            raise TimeoutError
        if self._error is not None:
            raise self._error
        return self._result
