"""The queue behind `S3AsyncCheckpoint`: saves and removals in their order, by one thread, bounded in number."""

from __future__ import annotations

import logging
import os
import threading
import traceback
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1  # Python delivers Ctrl-C between such waits.


@dataclass(eq=False)
class _Task:
    """One save, or one removal with the saves that must have succeeded before it."""

    uri: str
    action: Callable[[], None] | None
    is_save: bool
    after: tuple[_Task, ...] = ()
    is_done: bool = False
    thread: int = field(default_factory=threading.get_ident)
    error: BaseException | None = field(default=None, repr=False)


class UploadQueue:
    """Runs saves and removals one after the other in the background.

    One upload at a time uses the whole network already, and their order is what keeps a checkpoint that is written
    again and again (`last.ckpt`) from ending as an older one.

    The thread lives only while there is work. It is no daemon: at the end of the program Python waits for it, so that
    what was saved last arrives. A process that inherited the queue by fork does nothing with it.

    Args:
        max_in_flight: How many saves may wait or run; one more waits in `save`.
    """

    def __init__(self, max_in_flight: int) -> None:
        self.pid = os.getpid()
        self._max_in_flight = max_in_flight
        self._changed = threading.Condition()
        self._waiting: deque[_Task] = deque()
        self._running: _Task | None = None
        self._is_alive = False
        self._preparing: set[_Task] = set()
        # Saves that have not succeeded: in the queue, under way, or failed without their error having been raised.
        self._unproven: list[_Task] = []
        _queues.add(self)

    def save(self, uri: str, prepare: Callable[[], Callable[[], None]]) -> None:
        """Queue a save; wait while too many are in flight.

        Args:
            uri: What it writes.
            prepare: Takes the snapshot, once there is room for it, and returns what writes it.

        Raises:
            BaseException: What an earlier save or removal raised; this save is queued all the same, for it may be the
                last one.
        """
        task = _Task(uri, None, is_save=True)
        try:
            with self._changed:
                self._wait(lambda: self._in_flight() < self._max_in_flight)
                self._preparing.add(task)
            task.action = prepare()
            with self._changed:
                self._preparing.discard(task)
                self._start(task)
                failure = self._take_failure()
        except BaseException:
            # Ctrl-C may come between any two lines, and Lightning goes on after it: a place that stayed taken would
            # let a later save wait for ever.
            with self._changed:
                self._withdraw(task)
            raise
        if failure is not None:
            raise failure

    def remove(self, uri: str, action: Callable[[], None]) -> None:
        """Queue a removal behind the saves before it; it is dropped if one of them fails.

        Args:
            uri: What it removes.
            action: Removes it.
        """
        task = _Task(uri, action, is_save=False)
        try:
            with self._changed:
                task.after = tuple(save for save in self._unproven if save.is_save)
                self._start(task)
        except BaseException:
            with self._changed:
                self._withdraw(task)
            raise

    def drain(self) -> None:
        """Wait until nothing is queued or under way.

        Raises:
            BaseException: What a save or removal raised.
        """
        with self._changed:
            self._wait(lambda: not self._is_alive)
            failure = self._take_failure()
        if failure is not None:
            raise failure

    def pending(self, uri: str) -> bool | None:
        """What will be at a URI once the queue has run: True or False, or None when the queue does not touch it."""
        with self._changed:
            return next((task.is_save for task in reversed(self._unfinished()) if task.uri == uri), None)

    def wait_for(self, uri: str) -> None:
        """Wait until the queue touches neither a URI nor what lies below it.

        Raises:
            BaseException: What was to be saved or removed there, and failed, if that was not raised yet.
        """
        below = uri.rstrip("/") + "/"

        def is_there(task: _Task) -> bool:
            return task.uri == uri or task.uri.startswith(below)

        failure = None
        with self._changed:
            self._wait(lambda: not any(map(is_there, self._unfinished())))
            if any(is_there(task) for task in self._unproven if task.error is not None):
                failure = self._take_failure()
        if failure is not None:
            raise failure

    def _unfinished(self) -> list[_Task]:
        return [*([self._running] if self._running else []), *self._waiting]

    def _in_flight(self) -> int:
        running = self._running is not None and self._running.is_save
        # What this very thread prepares goes on after the save that a signal's handler makes in the midst of it.
        preparing = sum(task.thread != threading.get_ident() for task in self._preparing)
        return preparing + running + sum(task.is_save for task in self._waiting)

    def _wait(self, until: Callable[[], bool]) -> None:
        while not until():
            self._changed.wait(_POLL_SECONDS)

    def _take_failure(self) -> BaseException | None:
        """What has failed without having been raised; the caller raises it now."""
        errors = [task.error for task in self._unproven if task.error is not None]
        self._unproven = [task for task in self._unproven if task.error is None]
        for other in errors[1:]:
            errors[0].add_note(f"also failed in the background: {type(other).__name__}: {other}")
        return errors[0] if errors else None

    def _start(self, task: _Task) -> None:
        self._waiting.append(task)
        if task.is_save:
            self._unproven.append(task)
        if not self._is_alive:
            threading.Thread(target=self._work, name="s3torch-lightning-uploads", daemon=False).start()
            self._is_alive = True

    def _withdraw(self, task: _Task) -> None:
        self._preparing.discard(task)
        if task in self._waiting:  # else it has not come so far, or the thread has it already
            self._waiting.remove(task)
            self._forget(task)
        self._changed.notify_all()

    def _forget(self, task: _Task) -> None:
        if task in self._unproven:
            self._unproven.remove(task)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._running = task = self._waiting.popleft() if self._waiting else None
                self._is_alive = task is not None
                self._changed.notify_all()
            if task is None:
                return
            self._run(task)
            with self._changed:
                task.is_done = True
                task.action, task.after = None, ()  # lets go of the snapshot
                if task.error is None:
                    self._forget(task)
                self._running = None
                self._changed.notify_all()

    def _run(self, task: _Task) -> None:
        if any(save.error is not None or not save.is_done for save in task.after):
            logger.warning("%s is kept, because a save queued before its removal failed", task.uri)
            return
        assert task.action is not None
        try:
            task.action()
        except BaseException as error:
            what = "saved to" if task.is_save else "removed from"
            logger.error("a checkpoint could not be %s %s in the background: %s", what, task.uri, error)
            _clear_frames(error)
            task.error = error
            if not task.is_save:
                with self._changed:
                    self._unproven.append(task)


def _clear_frames(error: BaseException | None) -> None:
    """Let go of what the frames of an error hold, the snapshot above all: it may be long until somebody asks for it."""
    cleared: list[BaseException] = []
    while error is not None and error not in cleared:  # the errors of a user's own callable may form a circle
        traceback.clear_frames(error.__traceback__)
        cleared.append(error)
        error = error.__cause__ or error.__context__


_queues: weakref.WeakSet[UploadQueue] = weakref.WeakSet()


def pending_state(uri: str) -> bool | None:
    """Whether an upload in the background will leave something at a URI; None when none touches it.

    Args:
        uri: `s3://bucket/key`.
    """
    states = [queue.pending(uri) for queue in _own_queues()]
    return next((state for state in states if state is not None), None)


def wait_for(uri: str) -> None:
    """Wait until no upload or removal in the background touches a URI or what lies below it.

    Args:
        uri: `s3://bucket/key`, of an object or a folder.

    Raises:
        BaseException: What was to be saved or removed there, and failed, if that was not raised yet.
    """
    for queue in _own_queues():
        queue.wait_for(uri)


def _own_queues() -> list[UploadQueue]:
    return [queue for queue in list(_queues) if queue.pid == os.getpid()]
