"""One HTTP/1.1 connection that a thread waits on: a request at a time, and an answer whose body is read into place."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ._config import GiB, KiB
from ._wire import (
    HEAD_END,
    USUAL_HEAD,
    Chunks,
    NotUnderstood,
    body_length,
    check_begun_head,
    is_chunked,
    parse_head,
)

if TYPE_CHECKING:
    import socket

T = TypeVar("T")

_USUAL_PIECE = 64 * KiB
_MOST_AT_ONCE = GiB  # OpenSSL and some systems take no length beyond a C `int`.


class WaitingConnection:
    """An open connection; all but `interrupt` is for one thread at a time.

    Where there is no TLS, a body is one call of the system, which neither Python nor its lock interrupts: of 1 GiB into
    memory that is mapped, 2 cores shared with the server got 2.3 GB/s this way and 2.05 by `http.client`, for 0.41 and
    0.51 s of CPU time.

    Args:
        connection: The socket.
        timeout: Seconds to wait for the next bytes; a body may be waited for twice as long, since the system counts all
            the waiting of one call.
        is_tls: Whether it is a TLS socket.
    """

    def __init__(self, connection: socket.socket, timeout: float, *, is_tls: bool) -> None:
        import socket

        self._socket = connection
        # Beneath TLS, which has a `shutdown` of its own. Found now: nothing can be imported when the interpreter ends.
        self._shut_down = partial(socket.socket.shutdown, connection, socket.SHUT_RDWR)
        self._is_tls = is_tls
        self._flags = 0
        if is_tls or sys.platform == "win32":
            connection.settimeout(timeout)
        else:
            connection.settimeout(None)
            seconds = min(max(timeout, 0.001), 1e9)  # The system takes zero for no limit.
            limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            self._flags = socket.MSG_WAITALL
        self._early = memoryview(b"")
        self._failure: OSError | None = None
        self._is_chunked = False
        self.left = 0  # Bytes of the body that are still to come.
        self.has_begun = False  # Whether a part of the answer has come.

    def ask(self, request: bytes, *, takes_chunks: bool = False) -> tuple[int, dict[str, str]]:
        """Send a request and wait for the head of the answer.

        Args:
            request: The bytes to send.
            takes_chunks: Whether `read_body` will read the body, which may then come in chunks; an error's always may.

        Returns:
            Status and headers, by their names in lower case.

        Raises:
            NotUnderstood: It is none that is understood here; the connection is of no more use.
            OSError: The connection broke, or nothing came in time.
        """
        self.has_begun = False
        _in_time(self._socket.sendall, request)
        head = b""
        while (end := head.find(HEAD_END)) < 0:
            check_begun_head(head)
            head += self._some(USUAL_HEAD)
            self.has_begun = True
        status, headers = parse_head(head[:end])
        rest = head[end + len(HEAD_END) :]
        self._is_chunked = (takes_chunks or status >= 300) and is_chunked(headers)
        self.left = len(rest) if self._is_chunked else body_length(headers)
        if len(rest) > self.left:
            raise NotUnderstood("more bytes than were announced")
        self._early = memoryview(rest)
        return status, headers

    def read_body(self, most: int) -> bytes:
        """Read the whole body.

        Args:
            most: The most bytes to take.

        Raises:
            NotUnderstood: It is longer, or not in chunks as it should be; the connection is of no more use.
            OSError: The connection broke, or nothing came in time.
        """
        if self._is_chunked:
            return self._join_chunks(most)
        if self.left > most:
            raise NotUnderstood("a long body")
        data = bytearray(self.left)
        count = self.readinto(memoryview(data))
        if count < len(data):
            raise ConnectionError(f"the connection ended after {count} of {len(data)} bytes of a body")
        return bytes(data)

    def _join_chunks(self, most: int) -> bytes:
        self.left = 1  # The connection is not used again unless the end comes.
        chunks = Chunks()
        chunks.take(self._early)
        while not chunks.is_whole:
            if len(chunks.body) + chunks.rest > most:
                raise NotUnderstood("a long body")
            chunks.take(self._some(_USUAL_PIECE))
        self.left = chunks.rest
        return bytes(chunks.body)

    def _some(self, most: int) -> bytes:
        scratch = bytearray(most)
        count = _in_time(self._socket.recv_into, scratch)
        if not count:
            raise ConnectionError("the connection ended")
        return bytes(memoryview(scratch)[:count])

    def readinto(self, place: memoryview) -> int:
        """Fill memory with what comes next of the body.

        Returns:
            How many bytes came: fewer than there is room for, and than are left, where the connection broke.

        Raises:
            OSError: It broke before a byte came.
        """
        if self._failure is not None:
            raise self._failure
        place = place[: self.left]
        filled = min(len(self._early), len(place))
        place[:filled] = self._early[:filled]
        self._early = self._early[filled:]
        try:
            while filled < len(place):
                room = place[filled : filled + _MOST_AT_ONCE]
                count = _in_time(self._socket.recv_into, room, 0, self._flags)
                if not count:
                    break
                filled += count
        except OSError as error:
            if not filled:
                raise
            self._failure = error.with_traceback(None)  # for the next call
        self.left -= filled
        return filled

    def is_quiet(self) -> bool:
        """Whether it is still open, and nothing came that nobody asked for and that would be taken for an answer."""
        import select

        try:
            if self._is_tls and self._socket.pending():  # type: ignore[attr-defined]
                return False
            if hasattr(select, "poll"):  # `select` knows no descriptors above 1023.
                poll = select.poll()
                poll.register(self._socket, select.POLLIN)
                return not poll.poll(0)
            return not select.select([self._socket], [], [], 0)[0]
        except (OSError, ValueError):
            return False

    def interrupt(self) -> None:
        """Have a call that waits return or fail at once; for any thread."""
        with suppress(OSError):  # It may have ended by itself just now.
            self._shut_down()

    def close(self) -> None:
        """Close it; harmless when called again."""
        self._socket.close()


def _in_time(call: Callable[..., T], *arguments: Any) -> T:
    """Call it a timeout when the system's own ends a call."""
    try:
        return call(*arguments)
    except BlockingIOError as error:
        raise TimeoutError("the store took or sent nothing in time") from error
