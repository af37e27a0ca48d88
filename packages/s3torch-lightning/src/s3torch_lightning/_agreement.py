"""What one rank finds out for all of them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def from_rank_zero(work: Callable[[], T], is_rank_zero: bool, broadcast: Callable[[Any], Any]) -> T:
    """Do something on rank 0, and give its result, or its error, to all ranks: none is left waiting.

    Args:
        work: What to do.
        is_rank_zero: Whether this is rank 0.
        broadcast: Returns on all ranks what it was given on rank 0.
    """
    outcome: tuple[bool, Any] | None = None
    if is_rank_zero:
        try:
            outcome = (True, work())
        except Exception as error:
            outcome = (False, sendable(error))
    succeeded, value = broadcast(outcome)
    if not succeeded:
        raise value
    result: T = value
    return result


def sendable(error: Exception) -> Exception:
    """The error itself where it survives being sent to another process, or one that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
