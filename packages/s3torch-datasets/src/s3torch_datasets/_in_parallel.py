"""Calls that wait for the network, several at a time, on daemon threads that Ctrl-C does not wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
Report = Callable[[int], None]

_MAX_THREADS = 16
_WAIT_SECONDS = 0.2


def call_in_parallel(
    call: Callable[[T, Report, threading.Event], R], items: list[T], concurrency: int, on_report: Callable[[int], Any]
) -> Generator[R, None, None]:
    """Calls with each item; the first error, or closing the generator, stops the rest.

    Args:
        call: Takes an item, a function to report progress to, and an event that asks it to end early.
        items: What to call with.
        concurrency: Most calls at a time.
        on_report: Called in this thread with what is reported.

    Yields:
        The results, in the order of the items, each as soon as it and those before it are there.

    Raises:
        BaseException: What a call raised.
    """
    waiting: SimpleQueue[int] = SimpleQueue()
    for number in range(len(items)):
        waiting.put(number)
    events: SimpleQueue[int | tuple[int, R] | BaseException] = SimpleQueue()
    stop = threading.Event()

    def work() -> None:
        try:
            while not stop.is_set():
                try:
                    number = waiting.get_nowait()
                except Empty:
                    return
                events.put((number, call(items[number], events.put, stop)))
        except BaseException as error:
            events.put(error)

    for _ in range(min(_MAX_THREADS, concurrency, len(items))):
        threading.Thread(target=work, name="s3torch-parallel", daemon=True).start()
    results: dict[int, R] = {}
    yielded = 0
    try:
        while yielded < len(items):
            try:
                event = events.get(timeout=_WAIT_SECONDS)  # in slices, so that Ctrl-C is seen everywhere
            except Empty:
                continue
            if isinstance(event, BaseException):
                raise event
            if isinstance(event, int):
                on_report(event)
                continue
            results[event[0]] = event[1]
            del event
            while yielded in results:
                yield results.pop(yielded)
                yielded += 1
    finally:
        stop.set()
