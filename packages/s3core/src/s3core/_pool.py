"""A pool of daemon threads for blocking calls into the network.

`concurrent.futures.ThreadPoolExecutor` joins its threads at exit, so that Ctrl-C waits for transfers; these threads are
never joined. Tasks are single requests that wait for nothing but the network, so that tasks never wait for each other.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import ParamSpec, TypeVar

from ._exceptions import S3Exception
from ._outcome import Outcome

P = ParamSpec("P")
T = TypeVar("T")

# Waiting in slices lets a signal's handler run also where a lock cannot be interrupted (Windows).
_SLICE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class _Task:
    """Something to run.

    Args:
        call: It.
        is_counted: Whether an idle thread was set apart for it.
        is_behind: Whether it has let others go first.
    """

    call: Callable[[], None]
    is_counted: bool
    is_behind: bool = False


class Pool:
    """Threads that start when they are needed, up to `size`, and end when the pool is dropped.

    Args:
        size: The most threads, and so the most requests in flight.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._queue: SimpleQueue[_Task | None] = SimpleQueue()
        # A token for each thread that waits for work: a queue, which Ctrl-C cannot leave locked as it can a semaphore.
        self._idle: SimpleQueue[None] = SimpleQueue()
        self._lock = (
            threading.RLock()
        )  # Reentrant for a signal's handler, which may submit what interrupts a submission.
        self._count = 0
        weakref.finalize(self, self._queue.put, None).atexit = False

    @property
    def busy(self) -> int:
        """How many threads have something to run."""
        return self._count - self._idle.qsize()

    def submit(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Outcome[T]:
        """Run a call on one of the threads.

        Args:
            call: What to run.
            *args: Its arguments.
            **kwargs: Its keyword arguments.

        Returns:
            What comes of it.
        """
        outcome: Outcome[T] = Outcome()
        is_wanted = True

        def task() -> None:
            if not is_wanted:
                return
            try:
                result = call(*args, **kwargs)
            except BaseException as error:
                outcome.set_exception(error)
            else:
                outcome.set_result(result)

        try:
            self._idle.get_nowait()
            has_idle_thread = True
        except Empty:
            has_idle_thread = False
        self._queue.put(_Task(task, is_counted=True))
        if not has_idle_thread:
            try:
                self._add_thread()
            except BaseException:
                is_wanted = False
                raise
        return outcome

    def run_soon(self, call: Callable[[], None]) -> None:
        """Run a call that raises nothing on one of the threads that there are, as soon as one is free.

        Takes no lock and starts no thread, so that it is safe in a destructor, which the garbage collector may run in
        the midst of `submit`, and while the interpreter ends.

        Args:
            call: What to run.
        """
        self._queue.put(_Task(call, is_counted=False))

    def _add_thread(self) -> None:
        with self._lock:
            if self._count >= self.size:
                return
            thread = threading.Thread(
                target=_work, args=(self._queue, self._idle), name=f"s3core-{self._count}", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as error:
                if isinstance(error.__context__, KeyboardInterrupt):  # It came within a condition, which lost its lock.
                    raise error.__context__ from None
                # The system's limit is reached, or the interpreter ends: the threads that there are do it.
                if not self._count:
                    raise S3Exception(
                        f"no thread can be started for requests ({error}); raise the limit of processes and threads "
                        "(ulimit -u)"
                    ) from error
            else:
                self._count += 1


def wait_for(outcome: Outcome[T]) -> T:
    """Wait for an outcome in such a way that Ctrl-C is seen.

    Args:
        outcome: Of a task of a pool, or of an exchange.

    Returns:
        Its result.

    Raises:
        BaseException: The task's own error.
    """
    while True:
        try:
            return outcome.result(timeout=_SLICE_SECONDS)
        except TimeoutError:
            if outcome.done():  # Else it is the slice that is over.
                return outcome.result()


def _work(queue: SimpleQueue[_Task | None], idle: SimpleQueue[None]) -> None:
    # No reference to the pool: its end is what ends this loop.
    while True:
        task = queue.get()
        if task is None:
            queue.put(None)  # for the next thread
            return
        is_set_apart = task.is_counted
        if not is_set_apart:
            try:
                idle.get_nowait()
                is_set_apart = True
            except Empty:
                if not task.is_behind:  # All idle threads are set apart, this one too: what for comes first.
                    queue.put(replace(task, is_behind=True))
                    continue
        task.call()
        del task
        if is_set_apart:
            idle.put(None)
