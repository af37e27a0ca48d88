"""An iterator that several threads may share: each gets samples of its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Generic

from s3torch_datasets._dataset import T_co
from s3torch_datasets._fork_safe_lock import ForkSafeLock


class SharedIterator(Iterator[T_co], Generic[T_co]):
    """Makes its samples one at a time, whoever asks."""

    def __init__(self) -> None:
        self._lock = ForkSafeLock()

    def __next__(self) -> T_co:
        with self._lock.of_process():
            return self._next()

    @abstractmethod
    def _next(self) -> T_co:
        """Returns the next sample, or raises StopIteration."""
