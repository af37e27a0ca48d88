"""Everything that belongs to one process: what a forked child inherits is kept, and never used.

A child of fork finds its parent's locks in any state, threads gone, connections shared with the parent. So nothing of
the parent's is touched there, not even its destructors: it is laid aside for good, and the child starts afresh.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakValueDictionary

from . import _native
from ._loading import loading

if TYPE_CHECKING:
    from ._credentials import Credentials
    from ._runtime import Runtime
    from ._settings import Settings

_EXIT_SECONDS = 10.0


class Abortable(Protocol):
    """An upload that must not outlive its process."""

    def abandon(self) -> None:
        """Begin to abort, without waiting."""

    def finish(self, timeout: float) -> None:
        """Wait until the abort is done."""


class Process:
    """The state of one process, made at its first use there."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.RLock()
        self.runtimes: WeakValueDictionary[Settings, Runtime] = WeakValueDictionary()
        self.uploads: set[Abortable] = set()
        self._native: Any = None
        self._exit_hook = False

    @property
    def native(self) -> Any:
        """The private copy of obstore, loaded at first use."""
        if self._native is None:
            with self.lock, loading:
                if self._native is None:
                    native = _native.load_native()
                    _native.start_runtime(native)
                    self._native = native
        return self._native

    def watch(self, upload: Abortable) -> None:
        """Have an upload aborted at the process's exit, unless it is done by then."""
        with self.lock:
            if not self._exit_hook:
                _at_exit(self._abort_uploads)
                self._exit_hook = True
            self.uploads.add(upload)

    def forget(self, upload: Abortable) -> None:
        """The upload is done."""
        self.uploads.discard(upload)

    def _abort_uploads(self) -> None:
        if os.getpid() != self.pid:
            return
        uploads, deadline = list(self.uploads), time.monotonic() + _EXIT_SECONDS
        for upload in uploads:
            upload.abandon()
        for upload in uploads:
            upload.finish(timeout=max(0.0, deadline - time.monotonic()))


# The one state of this process, and what was inherited: held so that no destructor of it ever runs here.
_current: Process | None = None
_inherited: list[object] = []
# Plain values that a child may use: the keys that its parent had resolved.
_resolved: dict[Settings, Credentials] = {}


def process() -> Process:
    """The state of the process that asks."""
    global _current
    state = _current
    if state is None or state.pid != os.getpid():
        if state is not None:
            _lay_aside()
        # Two threads may both come here first; the loser's state has not been used.
        state = _first.setdefault(os.getpid(), Process())
        _current = state
    return state


_first: dict[int, Process] = {}


def _lay_aside() -> None:
    global _current
    if _current is not None:
        _inherited.append((_current, list(_current.runtimes.values()), dict(_first)))
        _current = None
    _first.clear()


def inherited_credentials(settings: Settings) -> Credentials | None:
    """What the parent process had resolved for these settings, if anything."""
    return _resolved.get(settings)


def remember_credentials(settings: Settings, credentials: Credentials) -> None:
    """Keep resolved credentials for the children of this process."""
    _resolved[settings] = credentials


def forget_credentials(settings: Settings) -> None:
    """Let go of resolved credentials, and of what the settings refer to."""
    _resolved.pop(settings, None)


def _at_exit(call: Callable[[], None]) -> None:
    # `atexit` does not run in multiprocessing's children, which end by `os._exit` after their finalizers.
    multiprocessing = sys.modules.get("multiprocessing.process")
    if multiprocessing is not None and multiprocessing.parent_process() is not None:
        from multiprocessing.util import Finalize

        Finalize(None, call, exitpriority=100)
    else:
        atexit.register(call)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_lay_aside)
