"""Runs tasks in a few threads such that every error reaches the caller and Ctrl-C ends the wait."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")

# How often the waiting caller looks for Ctrl-C; Python delivers signals between such waits.
_POLL_SECONDS = 0.1
_STOP_SECONDS = 1.0


class StoppedError(Exception):
    """A task ended early because another one failed; never what the caller sees."""


class _Run(Generic[T]):
    """The shared state of one call of `run_all`."""

    def __init__(self, tasks: Sequence[Callable[[threading.Event], T]]) -> None:
        self.stop = threading.Event()
        self.results: dict[int, T] = {}
        self.errors: list[BaseException] = []
        self._todo: queue.SimpleQueue[tuple[int, Callable[[threading.Event], T]]] = queue.SimpleQueue()
        for numbered in enumerate(tasks):
            self._todo.put(numbered)

    def work(self) -> None:
        while not self.stop.is_set():
            try:
                index, task = self._todo.get_nowait()
            except queue.Empty:
                return
            try:
                self.results[index] = task(self.stop)
            except StoppedError:
                return
            except BaseException as error:  # also SystemExit: the caller decides what it means
                self.errors.append(error)
                self.stop.set()
                return


def run_all(tasks: Sequence[Callable[[threading.Event], T]], thread_count: int) -> list[T]:
    """Run every task and return their results in order.

    The threads are daemons, so that an interrupted transfer does not hold up the end of the program. When a task
    fails, `stop` is set for the others, which end at their next look at it, and the first error is raised once all have
    ended; the further ones are added to it as notes.

    Args:
        tasks: Each takes the `stop` event; one that finds it set cleans up and raises `StoppedError`.
        thread_count: Threads to use at most.

    Returns:
        The tasks' results, in the tasks' order.

    Raises:
        BaseException: Whatever the first failing task raised.
    """
    run: _Run[T] = _Run(tasks)
    if len(tasks) == 1:
        return [tasks[0](run.stop)]
    threads = [
        threading.Thread(target=run.work, name=f"s3torch-checkpoint-{index}", daemon=True)
        for index in range(min(thread_count, len(tasks)))
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(_POLL_SECONDS)
    except BaseException:  # Ctrl-C in the waiting thread, or no further thread can be started
        run.stop.set()
        deadline = time.monotonic() + _STOP_SECONDS
        for thread in threads:  # they give up their uploads, where the network lets them
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        raise
    if run.errors:
        first = run.errors[0]
        for error in run.errors[1:]:
            first.add_note(f"also failed: {type(error).__name__}: {error}")
        raise first
    return [run.results[index] for index in range(len(tasks))]
