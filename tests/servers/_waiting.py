"""Waiting for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(is_so: Callable[[], bool], timeout_seconds: float = 20.0) -> None:
    """Return as soon as `is_so()` is true, looking a hundred times a second.

    Raises:
        AssertionError: It did not come true within `timeout_seconds`.
    """
    deadline = time.monotonic() + timeout_seconds
    while not is_so():
        assert time.monotonic() < deadline, f"it did not come true within {timeout_seconds:g} s"
        time.sleep(0.01)
