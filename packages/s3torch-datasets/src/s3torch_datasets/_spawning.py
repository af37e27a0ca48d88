"""Whether something is pickled for a child process, which gets what is shared, or for anybody else, who gets a copy."""

from __future__ import annotations

from multiprocessing.context import get_spawning_popen


def is_spawning() -> bool:
    """Whether this thread is pickling for a child process that multiprocessing is starting."""
    return get_spawning_popen() is not None
