"""Many jobs of one caller on the pool, a bounded number at a time, the first error stopping the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Generic, Protocol, TypeVar

from ._pool import Pool

_SLICE_SECONDS = 0.5


class Job(Protocol):
    """One request that fills its own place."""

    @property
    def size(self) -> int:
        """How many bytes come."""

    def run(self) -> int:
        """Do it and return how many bytes came."""

    def stop(self) -> None:
        """Let nothing more be written; returns when nothing is on its way."""


J = TypeVar("J", bound=Job)


def run_all(
    pool: Pool,
    jobs: Iterator[J],
    *,
    most_bytes: int | None = None,
    on_end: Callable[[J, int], None] | None = None,
    on_wait: Callable[[], None] | None = None,
) -> None:
    """Run jobs until all are done.

    The jobs are taken in the caller's thread, which may wait for them or use the pool for making them. At most twice as
    many as the pool has threads are handed over, so that no thread waits for the caller, and other users of the pool
    get their turn.

    Args:
        pool: Where to run them.
        jobs: The jobs, taken one by one as others end.
        most_bytes: Bound of the bytes of the jobs that are handed over, unless one job alone exceeds it; None for none.
        on_end: Called in the caller's thread with each job that ended, and the bytes that came.
        on_wait: Called in the caller's thread every half a second in which none ends.

    Raises:
        BaseException: The first job's error. Whatever is raised, no job writes a byte after it.
    """
    batch: _Batch[J] = _Batch(pool, most_bytes)
    try:
        job = next(jobs, None)
        while job is not None or batch.running:
            is_launched = job is not None and batch.launch(job)
            ended = batch.poll(wait=not is_launched)
            if ended is not None:
                if on_end is not None:
                    on_end(*ended)
            elif not is_launched and on_wait is not None:
                on_wait()
            if is_launched:
                job = next(jobs, None)
    except BaseException:
        batch.stop()
        raise


class _Batch(Generic[J]):
    """The jobs on their way; only the caller's thread touches `running`."""

    def __init__(self, pool: Pool, most_bytes: int | None) -> None:
        self.running: set[J] = set()
        self._bytes_handed_over = 0
        self._most_bytes = most_bytes
        self._pool = pool
        self._stopped = False
        self._ended: SimpleQueue[tuple[J, int | BaseException]] = SimpleQueue()

    def launch(self, job: J) -> bool:
        """Hand a job to the pool, unless so much is on its way that it has to wait."""
        is_over = self._most_bytes is not None and self._bytes_handed_over + job.size > self._most_bytes
        if self.running and (is_over or len(self.running) >= 2 * self._pool.size):
            return False
        self.running.add(job)
        self._bytes_handed_over += job.size
        self._pool.submit(self._run, job)
        return True

    def poll(self, *, wait: bool) -> tuple[J, int] | None:
        """Take note of a job that ended.

        Args:
            wait: Wait for one for half a second.

        Returns:
            It and its number of bytes; None when none has ended.

        Raises:
            BaseException: The job's error.
        """
        try:
            job, outcome = self._ended.get(timeout=_SLICE_SECONDS) if wait else self._ended.get_nowait()
        except Empty:
            return None
        self.running.discard(job)
        self._bytes_handed_over -= job.size
        if isinstance(outcome, BaseException):
            raise outcome
        return job, outcome

    def stop(self) -> None:
        """Start no further job and let none write any more."""
        self._stopped = True
        interruption: BaseException | None = None
        for job in self.running:
            try:
                job.stop()
            except BaseException as error:  # Ctrl-C, or what a signal's handler raises.
                interruption = error
                job.stop()
        if interruption is not None:
            raise interruption

    def _run(self, job: J) -> None:
        outcome: int | BaseException = 0
        try:
            if not self._stopped:
                outcome = job.run()
        except BaseException as error:
            outcome = error
        self._ended.put((job, outcome))
