"""One HTTP/1.1 connection that never waits: a request at a time, and an answer whose small body is in one piece."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._memory import Destination
from ._wire import HEAD_END, NotUnderstood, body_length, check_begun_head, open_socket, parse_head

if TYPE_CHECKING:
    import socket
    import ssl


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer.

    Args:
        status: Its HTTP status.
        headers: By their names in lower case.
        body: The whole body; None where the status is an error's, whose body is left unread.
    """

    status: int
    headers: dict[str, str]
    body: bytes | None


def connect(origin: str, timeout: float, tls: Callable[[], ssl.SSLContext]) -> Connection:
    """Open a connection; see `open_socket`."""
    opened = open_socket(origin, timeout, tls)
    opened.setblocking(False)
    if not origin.startswith("https:"):
        return Connection(opened, (BlockingIOError,), is_tls=False)
    import ssl

    return Connection(opened, (BlockingIOError, ssl.SSLWantReadError), is_tls=True)


class Connection:
    """An open connection, for one thread.

    Args:
        connection: The socket, which does not block.
        would_block: What it raises where it would have to wait for bytes.
        is_tls: Whether it is a TLS socket.
    """

    def __init__(self, connection: socket.socket, would_block: tuple[type[OSError], ...], *, is_tls: bool) -> None:
        self._socket = connection
        self._would_block = would_block
        self._is_tls = is_tls
        self._early = b""
        self._head: tuple[int, dict[str, str]] | None = None
        self._body = b""
        self._view = memoryview(b"")
        self._filled = 0

    def fileno(self) -> int:
        """For a selector."""
        return self._socket.fileno()

    @property
    def has_begun(self) -> bool:
        """Whether a part of an answer has come."""
        return bool(self._early) or self._head is not None

    def send(self, request: bytes) -> None:
        """Send a request, for which there is room in the system's buffer when no other is on its way.

        Raises:
            OSError: The connection is closed, or there was no room.
        """
        if self._socket.send(request) != len(request):
            raise OSError("the connection takes no whole request")

    def receive(self, scratch: bytearray, most: int) -> Reply | None:
        """Take what has come.

        Args:
            scratch: Memory to work with, of the caller's thread; longer than a usual head.
            most: The longest body to expect.

        Returns:
            The answer, or None while more of it is to come.

        Raises:
            NotUnderstood: It is none that is understood here; the connection is of no more use.
            OSError: The connection broke.
        """
        try:
            while True:
                place = scratch if self._head is None else self._view[self._filled :]
                count = self._socket.recv_into(place)
                if not count:
                    raise ConnectionError("the connection ended")
                if self._head is None:
                    self._take_head(scratch, count, most)
                else:
                    self._filled += count
                if self._head is not None and self._filled == len(self._view):
                    return self._finish()
                if count < len(place) and not self._is_tls:
                    return None  # There is no more of it yet, as a TLS record's end does not say.
        except self._would_block:
            return None

    def close(self) -> None:
        """Close it; harmless when called again."""
        self._socket.close()

    def _take_head(self, scratch: bytearray, count: int, most: int) -> None:
        """Read the head, if it is all there, and the part of the body that came with it."""
        if self._early:
            scratch = bytearray(self._early) + scratch[:count]
            count = len(scratch)
        end = scratch.find(HEAD_END, 0, count)
        if end < 0:
            self._early = bytes(scratch[:count])
            check_begun_head(self._early)
            return
        self._early = b""
        status, headers = parse_head(bytes(scratch[:end]))
        if status >= 300:
            self._head = status, headers
            return
        begin = end + len(HEAD_END)
        length = body_length(headers)
        if length > most or count - begin > length:
            raise NotUnderstood("more bytes than were asked for")
        destination, self._body = Destination.of_new_bytes(length)
        self._view = destination.view()
        self._filled = count - begin
        if self._filled:  # An empty body's memory is read-only.
            self._view[: self._filled] = memoryview(scratch)[begin:count]
        self._head = status, headers

    def _finish(self) -> Reply:
        assert self._head is not None
        status, headers = self._head
        reply = Reply(status, headers, self._body if status < 300 else None)
        self._head, self._body, self._view, self._filled = None, b"", memoryview(b""), 0
        return reply
