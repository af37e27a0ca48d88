"""Connections for large ranges and for listings: each of one thread at a time, and then of the next."""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from ._config import KiB, MiB
from ._waiting_connection import WaitingConnection
from ._wire import LONGEST_IDLE_SECONDS, NotUnderstood, Oddities, is_last, open_socket

if TYPE_CHECKING:
    import ssl

_LONGEST_ERROR = 64 * KiB
_LONGEST_DOCUMENT = 64 * MiB


class Connections:
    """Opens connections, and keeps those that can be used again; idle ones are closed when it is dropped, and at exit.

    Args:
        most: The most idle ones of an origin.
        connect_timeout: Seconds to wait for each step of opening one.
        read_timeout: Seconds to wait for the next bytes.
        tls: Says whom to trust.
        takes_chunks: Whether the bodies will be read by `OwnReply.read_body`, which may then come in chunks.
    """

    def __init__(
        self,
        most: int,
        connect_timeout: float,
        read_timeout: float,
        tls: Callable[[], ssl.SSLContext],
        *,
        takes_chunks: bool = False,
    ) -> None:
        self._most = most
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._tls = tls
        self._takes_chunks = takes_chunks
        # Since when each is idle; the ones that were used last are taken first. Nothing here waits for a lock.
        self._idle: dict[str, deque[tuple[float, WaitingConnection]]] = {}
        self._oddities = Oddities()
        weakref.finalize(self, _close_all, self._idle)

    @property
    def is_understood(self) -> bool:
        """Whether answers have not been odd, again and again: then it is no use to ask in this way for a while."""
        return not self._oddities.are_too_many

    def open(self, origin: str, request: bytes) -> OwnReply:
        """Send a request and wait for the head of the answer.

        Args:
            origin: Scheme, host and port.
            request: The bytes to send.

        Raises:
            NotUnderstood: The answer is none that is understood here.
            OSError: None came.
        """
        while True:
            connection = self._take_idle(origin)
            is_new = connection is None
            if connection is None:
                opened = open_socket(origin, self._connect_timeout, self._tls)
                connection = WaitingConnection(opened, self._read_timeout, is_tls=origin.startswith("https:"))
            try:
                status, headers = connection.ask(request, takes_chunks=self._takes_chunks)
            except BaseException as error:
                connection.close()
                if isinstance(error, NotUnderstood):
                    self.note_oddity()
                elif isinstance(error, OSError) and not (
                    is_new or connection.has_begun or isinstance(error, TimeoutError)
                ):
                    continue  # The store had ended it while it was idle.
                raise
            return OwnReply(self, origin, connection, status, headers)

    def note_oddity(self) -> None:
        """Take note of an answer that was not understood."""
        self._oddities.note()

    def keep(self, origin: str, connection: WaitingConnection, headers: Mapping[str, str]) -> None:
        """Let a connection whose answer was read be used again, if it can be; otherwise close it.

        Args:
            origin: Where it leads.
            connection: It.
            headers: Those of its last answer.
        """
        self._oddities.forget()
        idle = self._idle.setdefault(origin, deque())
        with suppress(IndexError):  # Two threads may close one each of the oldest, or a younger one at worst.
            while idle[0][0] < time.monotonic() - LONGEST_IDLE_SECONDS:
                idle.popleft()[1].close()
        if connection.left or is_last(headers) or len(idle) >= self._most:
            connection.close()
        else:
            idle.append((time.monotonic(), connection))

    def _take_idle(self, origin: str) -> WaitingConnection | None:
        idle = self._idle.get(origin)
        oldest = time.monotonic() - LONGEST_IDLE_SECONDS
        with suppress(IndexError):
            while idle is not None:
                since, connection = idle.pop()
                if since > oldest and connection.is_quiet():
                    return connection
                connection.close()
        return None


class OwnReply:
    """An answer whose body is to come on a connection of our own.

    Args:
        connections: Where that came from.
        origin: Where it leads.
        connection: It.
        status: The answer's status.
        headers: Its headers, by their names in lower case.
    """

    tells_count = True  # how much came before a read failed

    def __init__(
        self, connections: Connections, origin: str, connection: WaitingConnection, status: int, headers: dict[str, str]
    ) -> None:
        self._connections = connections
        self._origin = origin
        self._connection: WaitingConnection | None = connection
        self.status = status
        self.headers: Mapping[str, str] = headers

    def readinto(self, place: memoryview) -> int:
        """Fill memory with what comes next; fewer bytes than it takes where the connection or the body ended."""
        return self._connection.readinto(place) if self._connection is not None else 0

    def read_error(self) -> bytes:
        """Read the body of an error, if it is a short one."""
        try:
            return self._read_body(_LONGEST_ERROR)
        except NotUnderstood:
            return b""

    def read_body(self) -> bytes:
        """Read all of a body that may come in chunks.

        Raises:
            NotUnderstood: It is none that is understood here.
            OSError: The connection broke, or nothing came in time.
        """
        try:
            return self._read_body(_LONGEST_DOCUMENT)
        except NotUnderstood:
            self._connections.note_oddity()
            raise

    def _read_body(self, most: int) -> bytes:
        connection = self._connection
        try:
            body = connection.read_body(most) if connection is not None else b""
            self.release()
            return body
        finally:
            self.close()

    def interrupt(self) -> None:
        """Have a call of `readinto` that waits return or fail at once; for any thread."""
        connection = self._connection
        if connection is not None:
            connection.interrupt()

    def release(self) -> None:
        """Let the connection be used again: the body was read."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._connections.keep(self._origin, connection, self.headers)

    def close(self) -> None:
        """End the connection, unless it was released."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _close_all(idle: dict[str, deque[tuple[float, WaitingConnection]]]) -> None:
    for connections in list(idle.values()):
        with suppress(IndexError):
            while True:  # At the interpreter's exit other threads may still take one, or put one back.
                connections.pop()[1].close()
