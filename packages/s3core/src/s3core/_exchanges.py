"""Many small requests at a time, each with its answer, on connections that one thread watches.

A thread for each of them would spend more on waking up, and on waiting for Python's lock, than on the bytes.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from sys import is_finalizing
from typing import TYPE_CHECKING, Protocol

from ._connection import Connection, Reply
from ._loading import load
from ._plan import SMALL_RANGE
from ._pool import Pool
from ._wire import LONGEST_IDLE_SECONDS, USUAL_HEAD, NotUnderstood, Oddities, is_last

if TYPE_CHECKING:
    import selectors
    import socket

logger = logging.getLogger("s3core")

_SWEEP_SECONDS = 1.0
# Connections that are opened at the same time. A store that answers at once needs few, for what they have carried out
# makes room for the next; where an answer takes longer, all that there may be are open after four times.
_MOST_OPENING = 32
_READ = 1  # `selectors.EVENT_READ`, which is not imported before it is needed.


class Exchange(Protocol):
    """A request, and what to do with its outcome: either `on_reply` or `on_failure` is called, once.

    Nothing but `connect` may wait for anything.
    """

    @property
    def origin(self) -> str:
        """Whom to ask: scheme, host and port."""

    @property
    def is_wanted(self) -> bool:
        """Whether the answer is still wanted."""

    def connect(self) -> Connection:
        """Open a connection to the origin; called in a thread of the pool."""

    def request(self) -> bytes:
        """The bytes to send."""

    def on_reply(self, reply: Reply) -> None:
        """Take the answer."""

    def on_failure(self, attempts: int) -> None:
        """Do without an answer.

        Args:
            attempts: How many attempts this was: none where the connection had ended while it was idle, or could not be
                opened, or where nobody wants the answer.
        """


class Exchanges:
    """Carries exchanges out, in order of their submission; its thread and connections end when it is dropped.

    Args:
        pool: Opens connections.
        most: The most exchanges at a time.
        timeout: Seconds to wait for the next bytes of an answer.
    """

    def __init__(self, pool: Pool, most: int, timeout: float) -> None:
        self._watcher = _Watcher(pool, most, timeout)
        weakref.finalize(self, self._watcher.tell, None).atexit = False

    @property
    def is_understood(self) -> bool:
        """Whether answers have not been odd, again and again: then it is no use to ask in this way for a while."""
        return not self._watcher.oddities.are_too_many

    def submit(self, exchange: Exchange) -> None:
        """Have an exchange carried out; waits for nothing.

        Args:
            exchange: It.
        """
        try:
            self._watcher.start()
        except Exception:  # There is no room for a thread.
            exchange.on_failure(0)
        else:
            self._watcher.tell(partial(self._watcher.add, exchange))


@dataclass(eq=False, slots=True)
class _Line:
    """A connection in use.

    Args:
        connection: It.
        origin: Where it leads.
        exchange: What is on its way; None while it is idle.
        since: When the last bytes came or went.
        is_used: Whether an answer has come before.
    """

    connection: Connection
    origin: str
    exchange: Exchange | None
    since: float
    is_used: bool = False


class _Watcher:
    """The thread that watches, and all that it alone touches; other threads `tell` it what to do.

    Args:
        pool: See `Exchanges`, as for all below.
        most: See there.
        timeout: See there.
    """

    def __init__(self, pool: Pool, most: int, timeout: float) -> None:
        self._pool = pool
        self._most = most
        self._timeout = timeout
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._is_asleep = self._is_started = self._is_over = False
        self._start_lock = threading.RLock()  # Reentrant for a signal's handler, as are the others that callers take.
        self._claim = threading.Lock()
        self._bell: socket.socket | None = None
        self._bell_lock = threading.RLock()  # Reentrant, because the garbage collector may call `tell` within.
        self._selector: selectors.BaseSelector
        self.oddities = Oddities()
        self._scratch = bytearray()
        self._lines: set[_Line] = set()
        self._idle: dict[str, list[_Line]] = {}
        self._waiting: deque[Exchange] = deque()
        self._active: set[Exchange] = set()  # On their way, or `_unsent`.
        self._unsent: dict[str, deque[Exchange]] = {}  # Waiting for a connection, whichever is free first; by origin.
        self._opening: dict[str, int] = {}  # How many are being opened; none only where nothing is unsent.
        self._swept = 0.0

    def start(self) -> None:
        """Start the thread, unless it runs."""
        if self._is_started:
            return
        load("selectors", "socket")
        with self._start_lock:
            if not self._is_started:
                # After Ctrl-C in the midst of this a second one may be started, which ends at once.
                threading.Thread(target=self._run, name="s3core-exchanges", daemon=True).start()
                self._is_started = True

    def tell(self, call: Callable[[], None] | None) -> None:
        """Have the thread call something soon, or end; safe in a destructor.

        Args:
            call: What to call; None to end.
        """
        self._calls.put(call)
        if self._is_asleep and not is_finalizing():  # Else the thread stands still, and may hold the lock for ever.
            with self._bell_lock:
                if self._is_asleep and self._bell is not None:
                    self._bell.send(b"\0")
                    self._is_asleep = False  # Not before: Ctrl-C in between makes the next one ring again.
        if self._is_over:
            self._refuse()

    def add(self, exchange: Exchange) -> None:
        """Carry an exchange out when its turn comes."""
        if self._is_over:
            exchange.on_failure(0)
            return
        self._waiting.append(exchange)
        self._advance()

    def _run(self) -> None:
        if not self._claim.acquire(blocking=False):
            return
        import selectors
        import socket

        try:
            self._scratch = bytearray(USUAL_HEAD)
            bell, ear = socket.socketpair()
            with bell, ear, selectors.DefaultSelector() as self._selector:
                try:
                    self._selector.register(ear, _READ)
                    with self._bell_lock:
                        self._bell = bell
                    while self._take_calls():
                        self._watch(ear)
                finally:
                    with self._bell_lock:
                        self._bell = None
                    self._is_over = True  # before anyone hears of a failure
                    for line in list(self._lines):
                        self._drop(line, 0)
        except Exception:
            logger.exception("the thread that watches small requests ended; they go another way from now on")
        finally:
            self._is_over = True
            for exchange in list(self._active):
                self._fail(exchange, 0)
            while self._waiting:
                self._waiting.popleft().on_failure(0)
            self._refuse()

    def _take_calls(self) -> bool:
        """Call what was told; say whether that was all, or the thread is to end before the rest."""
        with suppress(Empty):
            while True:
                call = self._calls.get_nowait()
                if call is None:
                    return False
                call()
        return True

    def _refuse(self) -> None:
        """Call what was told to a thread that is over, which each of the calls finds out by itself."""
        while not self._take_calls():
            pass

    def _watch(self, ear: socket.socket) -> None:
        """Wait until something comes, and see to it."""
        self._set_asleep(True)
        idle_seconds = LONGEST_IDLE_SECONDS if self._lines else None
        # What was told just before did not ring.
        seconds = 0 if not self._calls.empty() else _SWEEP_SECONDS if self._active else idle_seconds
        ready = self._selector.select(seconds)
        self._set_asleep(False)
        for key, _ in ready:
            if key.data is None:
                ear.recv(4096)
            else:
                self._serve(key.data)
        now = time.monotonic()
        if now - self._swept > _SWEEP_SECONDS:
            self._swept = now
            for line in list(self._lines):
                if now - line.since > (LONGEST_IDLE_SECONDS if line.exchange is None else self._timeout):
                    self._drop(line, 1)
            self._advance()

    def _set_asleep(self, is_asleep: bool) -> None:
        with self._bell_lock:
            self._is_asleep = is_asleep

    def _advance(self) -> None:
        """Begin what waits, as far as there is room."""
        while self._waiting and len(self._active) < self._most:
            exchange = self._waiting.popleft()
            if not exchange.is_wanted:
                exchange.on_failure(0)
                continue
            self._active.add(exchange)
            line = self._take_idle(exchange.origin)
            if line is not None:
                self._send(line, exchange)
            else:
                self._unsent.setdefault(exchange.origin, deque()).append(exchange)
                self._open_more(exchange.origin)

    def _take_idle(self, origin: str) -> _Line | None:
        oldest = time.monotonic() - LONGEST_IDLE_SECONDS
        idle = self._idle.get(origin, [])
        while idle:
            line = idle.pop()
            if line.since > oldest and self._is_quiet(line):
                return line
            self._drop(line, 0)
        return None

    def _is_quiet(self, line: _Line) -> bool:
        """Whether nothing came that nobody asked for, and that would be taken for the next answer."""
        try:
            return line.connection.receive(self._scratch, SMALL_RANGE) is None and not line.connection.has_begun
        except (NotUnderstood, OSError):
            return False

    def _send(self, line: _Line, exchange: Exchange) -> None:
        line.exchange = exchange
        line.since = time.monotonic()
        try:
            line.connection.send(exchange.request())
        except Exception:  # Whoever asks again by the other way hears the reason there.
            self._drop(line, 0)

    def _open_more(self, origin: str) -> None:
        """Have connections opened, where more is unsent than are being opened."""
        unsent = self._unsent[origin]
        while self._opening.get(origin, 0) < min(len(unsent), _MOST_OPENING):
            try:
                self._pool.submit(self._open, unsent[-1])
            except Exception:  # No thread can be started.
                self._fail(unsent.popleft(), 0)
            else:
                self._opening[origin] = self._opening.get(origin, 0) + 1

    def _open(self, exchange: Exchange) -> None:
        """Open a connection as an exchange would have it; in a thread of the pool."""
        connection = None
        try:
            connection = exchange.connect()
        except Exception as error:
            logger.debug("no connection to %s: %s", exchange.origin, error)
        finally:
            self.tell(partial(self._opened, exchange.origin, connection))

    def _opened(self, origin: str, connection: Connection | None) -> None:
        if self._is_over:
            if connection is not None:
                connection.close()
            return
        self._opening[origin] -= 1
        if connection is not None:
            line = _Line(connection, origin, None, time.monotonic())
            self._lines.add(line)
            self._selector.register(connection, _READ, line)
            self._go_on(line)
        else:
            self._give_up(origin)
        self._open_more(origin)
        self._advance()

    def _give_up(self, origin: str) -> None:
        """Fail what could not be sent; whoever asks by the other way hears the reason there."""
        unsent = self._unsent[origin]
        is_reached = any(line.origin == origin for line in self._lines)
        while unsent:
            self._fail(unsent.popleft(), 0)
            if is_reached:
                return

    def _go_on(self, line: _Line) -> None:
        """Use a connection that is free for what waits for one; else keep it."""
        unsent = self._unsent[line.origin]
        if unsent and line.is_used and not self._is_quiet(line):
            self._drop(line, 0)
            return
        while unsent:
            exchange = unsent.popleft()
            if exchange.is_wanted:
                self._send(line, exchange)
                return
            self._fail(exchange, 0)
        self._idle.setdefault(line.origin, []).append(line)

    def _serve(self, line: _Line) -> None:
        """Take what has come on a connection."""
        exchange = line.exchange
        if exchange is None:
            if not self._is_quiet(line):
                self._drop(line, 0)
            return
        try:
            reply = line.connection.receive(self._scratch, SMALL_RANGE)
        except NotUnderstood as error:
            logger.debug("an answer of %s is asked for in another way: %s", line.origin, error)
            self.oddities.note()
            self._drop(line, 0)
        except OSError:
            self._drop(line, 0 if line.is_used and not line.connection.has_begun else 1)
        else:
            line.since = time.monotonic()
            if reply is None:
                return
            self.oddities.forget()
            line.exchange = None
            self._keep(line, reply)
            exchange.on_reply(reply)
            self._active.discard(exchange)
        self._advance()

    def _keep(self, line: _Line, reply: Reply) -> None:
        """Let a connection be used again, if it can be."""
        if reply.body is None or is_last(reply.headers):
            self._drop(line, 0)
        else:
            line.is_used = True
            self._go_on(line)

    def _drop(self, line: _Line, attempts: int) -> None:
        """Close a connection; what was on its way has failed."""
        exchange, line.exchange = line.exchange, None
        self._lines.discard(line)
        idle = self._idle.get(line.origin, [])
        if line in idle:
            idle.remove(line)
        with suppress(KeyError, ValueError):
            self._selector.unregister(line.connection)
        line.connection.close()
        if exchange is not None:
            self._fail(exchange, attempts)

    def _fail(self, exchange: Exchange, attempts: int) -> None:
        if exchange in self._active:  # and not told before
            self._active.discard(exchange)
            exchange.on_failure(attempts)
