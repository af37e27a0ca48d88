"""Progress bars of transfers: shown by one rank, and only when a transfer takes longer than a second."""

from __future__ import annotations

import threading
from types import TracebackType

import torch.distributed as dist
from tqdm import tqdm
from tqdm.std import TqdmDefaultWriteLock

SHOW_AFTER_SECONDS = 1.0


class _Bar(tqdm):  # type: ignore[misc]  # tqdm has no types
    """A bar that leaves no trace in the process: neither a thread nor a start method of multiprocessing.

    tqdm's own lock holds one of multiprocessing, whose making fixes the start method. This one is the part of it that
    is for threads, so that bars of the user in other threads and this one still take turns.
    """

    monitor_interval = 0


_Bar.set_lock(TqdmDefaultWriteLock.th_lock)


class TransferProgress:
    """A bar that counts bytes, from any thread.

    Args:
        description: What is transferred.
        total_bytes: How much there is; None when it is not known.
        enabled: False shows nothing. In a distributed job only rank 0 shows a bar.
    """

    def __init__(self, description: str, total_bytes: int | None, enabled: bool) -> None:
        self._lock = threading.Lock()
        self._done_bytes = 0
        self._bar: _Bar | None = None
        if enabled and _is_first_rank():
            # Without `disable`, so that `TQDM_DISABLE` has the last word.
            self._bar = _Bar(
                total=total_bytes,
                desc=description,
                unit="B",
                unit_scale=True,
                unit_divisor=1024,
                delay=SHOW_AFTER_SECONDS,
                leave=False,
                miniters=0,  # Else tqdm may skip updates, which its thread would make good.
            )

    @property
    def done_bytes(self) -> int:
        """Bytes counted so far."""
        return self._done_bytes

    def expect(self, total_bytes: int) -> None:
        """Say how much there is, where it was not known at the start."""
        if self._bar is not None:
            with self._lock:
                self._bar.total = total_bytes

    def advance(self, length: int) -> None:
        """Count `length` more bytes."""
        with self._lock:
            self._done_bytes += length
            if self._bar is not None:
                self._bar.update(length)

    def __enter__(self) -> TransferProgress:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def _is_first_rank() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
