"""Calls that wait for the network, several at a time, on daemon threads that Ctrl-C does not wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
Report = Callable[[int], None]

_MAX_THREADS = 16
_WAIT_SECONDS = 0.2


def call_in_parallel(
    call: Callable[[T, Report, threading.Event], R], items: list[T], concurrency: int, on_report: Callable[[int], Any]
) -> list[R]:
    """Calls with each item; the first error stops the rest and is raised.

    Args:
        call: Takes an item, a function to report progress to, and an event that asks it to end early.
        items: What to call with.
        concurrency: Most calls at a time.
        on_report: Called in this thread with what is reported.

    Returns:
        The results, in the order of the items.
    """
    results: dict[int, R] = {}
    waiting: SimpleQueue[int] = SimpleQueue()
    for number in range(len(items)):
        waiting.put(number)
    events: SimpleQueue[int | BaseException | None] = SimpleQueue()
    stop = threading.Event()

    def work() -> None:
        try:
            while not stop.is_set():
                try:
                    number = waiting.get_nowait()
                except Empty:
                    break
                results[number] = call(items[number], events.put, stop)
        except BaseException as error:
            events.put(error)
        else:
            events.put(None)

    running = min(_MAX_THREADS, concurrency, len(items))
    for _ in range(running):
        threading.Thread(target=work, name="s3torch-parallel", daemon=True).start()
    try:
        while running:
            try:
                event = events.get(timeout=_WAIT_SECONDS)  # in slices, so that Ctrl-C is seen everywhere
            except Empty:
                continue
            if isinstance(event, BaseException):
                raise event
            if event is None:
                running -= 1
            else:
                on_report(event)
    finally:
        stop.set()
    return [results[number] for number in range(len(items))]
