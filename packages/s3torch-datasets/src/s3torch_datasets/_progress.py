"""A progress bar for work that takes longer than a second, shown by one process of a job."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from tqdm import tqdm
from tqdm.std import TqdmDefaultWriteLock

from s3torch_datasets._place import find_rank, find_worker

_DELAY_SECONDS = 1.0


class _Bar(tqdm):  # type: ignore[misc]  # tqdm has no types
    """A bar that leaves no trace in the process: neither a thread nor a start method of multiprocessing.

    tqdm's own lock holds one of multiprocessing, whose making fixes the start method. This one is the part of it that
    is for threads, so that bars of the user in other threads and this one still take turns.
    """

    monitor_interval = 0


_Bar.set_lock(TqdmDefaultWriteLock.th_lock)


class _NoBar:
    """Stands for a bar where none is shown."""

    n = 0

    def update(self, count: int) -> None:
        """Does nothing."""


def progress_bar(description: str, unit: str, *, shown: bool, total: int | None = None, is_kept: bool = True) -> Any:
    """Returns a tqdm bar that appears after a second, in rank 0 and worker 0, and one that shows nothing elsewhere.

    Args:
        description: What is going on.
        unit: What is counted.
        shown: False for no bar in any process.
        total: How many there will be, where that is known.
        is_kept: Whether it stays on the screen at the end.
    """
    if not shown or find_rank()[0] != 0 or find_worker()[0] != 0:
        return nullcontext(_NoBar())
    # Without `disable`, so that `TQDM_DISABLE` has the last word.
    return _Bar(
        desc=description,
        unit=unit,
        unit_scale=True,
        total=total,
        leave=is_kept,
        delay=_DELAY_SECONDS,
        miniters=0,  # Else tqdm may skip updates, which its thread would make good.
    )
