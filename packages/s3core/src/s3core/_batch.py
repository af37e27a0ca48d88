"""Many jobs of one caller on the pool, a bounded number at a time, the first error stopping the rest."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Protocol

from ._pool import Pool

_SLICE_SECONDS = 0.5


class Job(Protocol):
    """One request that fills its own place."""

    def run(self) -> int:
        """Do it and return how many bytes came."""

    def stop(self) -> None:
        """Let nothing more be written; returns when nothing is on its way."""


def run_all(
    pool: Pool, jobs: Iterator[Job], *, width: int | None = None, progress: Callable[[int], None] | None = None
) -> None:
    """Run jobs until all are done.

    A job that ends puts the next one at the end of the pool's queue, so that other users of the pool get their turn.

    Args:
        pool: Where to run them.
        jobs: The jobs, taken one by one as they start.
        width: The most at a time; None for as many as the pool has threads.
        progress: Called in the caller's thread with the bytes of each job that ended.

    Raises:
        BaseException: The first job's error. Whatever is raised, no job writes a byte after it.
    """
    batch = _Batch(pool, jobs, width or pool.size)
    try:
        batch.start()
        batch.wait(progress)
    except BaseException:
        batch.stop()
        raise


class _Batch:
    def __init__(self, pool: Pool, jobs: Iterator[Job], width: int) -> None:
        self._pool = pool
        self._jobs = jobs
        self._width = width
        self._lock = threading.Lock()
        self._running: set[Job] = set()
        self._stopped = False
        self._events: SimpleQueue[int | BaseException | None] = SimpleQueue()

    def start(self) -> None:
        for _ in range(self._width):
            if not self._launch():
                break
        with self._lock:
            if not self._running:
                self._events.put(None)

    def wait(self, progress: Callable[[int], None] | None) -> None:
        while True:
            try:
                event = self._events.get(timeout=_SLICE_SECONDS)
            except Empty:
                continue
            if event is None:
                return
            if isinstance(event, BaseException):
                raise event
            if progress is not None:
                progress(event)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for job in running:
            job.stop()

    def _launch(self) -> bool:
        with self._lock:
            job = None if self._stopped else next(self._jobs, None)
            if job is None:
                return False
            self._running.add(job)
        self._pool.submit(self._run, job)
        return True

    def _run(self, job: Job) -> None:
        try:
            with self._lock:
                stopped = self._stopped
            self._events.put(0 if stopped else job.run())
            self._launch()
        except BaseException as error:
            self._events.put(error)
            self.stop()
        finally:
            with self._lock:
                self._running.discard(job)
                last = not self._running
            if last:
                self._events.put(None)
