"""One HTTP/1.1 connection that never waits: a request at a time, and an answer whose small body is kept in one piece.

It understands what an S3 store answers to a ranged GET when all is well, and refuses everything else, so that whoever
uses it asks again by a library that knows the rest of HTTP.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._loading import load
from ._memory import Destination

if TYPE_CHECKING:
    import socket
    import ssl

_STATUS_LINE = re.compile(r"HTTP/1\.1 ([2-5][0-9][0-9])(?: [^\r\n]*)?(?:\r\n|$)")
_HEADER = re.compile(r"\r\n([!#$%&'*+.^_`|~0-9A-Za-z-]++):[ \t]*+([^\r\n]*+)(?=\r\n|$)")
# Others may come several times, as some stores' `Vary` does.
_SINGLE = frozenset({"connection", "content-length", "content-range", "etag", "transfer-encoding"})
_LENGTH = re.compile(r"[0-9]{1,15}")
_HEAD_END = b"\r\n\r\n"
_LONGEST_HEAD = 16 * 1024


class NotUnderstood(Exception):
    """The answer is none of those that are understood here."""


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


def connect(host: str, port: int, timeout: float, tls: ssl.SSLContext | None) -> Connection:
    """Open a connection; waits for the network.

    Args:
        host: Name or address.
        port: TCP port.
        timeout: Seconds to wait for each step.
        tls: How to trust the other side; None for no TLS.

    Raises:
        OSError: It cannot be reached or is not to be trusted.
    """
    load("socket", "encodings.idna")
    import socket

    plain = socket.create_connection((host, port), timeout)
    try:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is None:
            plain.setblocking(False)
            return Connection(plain, (BlockingIOError,), is_tls=False)
        import ssl

        wrapped = tls.wrap_socket(plain, server_hostname=host.rstrip("."))  # which closes `plain` when it fails
        wrapped.setblocking(False)
        return Connection(wrapped, (BlockingIOError, ssl.SSLWantReadError), is_tls=True)
    except BaseException:
        plain.close()
        raise


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
        end = scratch.find(_HEAD_END, 0, count)
        if end < 0:
            if count > _LONGEST_HEAD:
                raise NotUnderstood("a long head")
            self._early = bytes(scratch[:count])
            return
        self._early = b""
        status, headers = parse_head(bytes(scratch[:end]))
        if status >= 300:
            self._head = status, headers
            return
        begin = end + len(_HEAD_END)
        length = _length(headers)
        if length > most or count - begin > length:
            raise NotUnderstood("more bytes than were asked for")
        destination, self._body = Destination.of_new_bytes(length)
        self._view = destination.view()
        self._filled = count - begin
        self._view[: self._filled] = memoryview(scratch)[begin:count]
        self._head = status, headers

    def _finish(self) -> Reply:
        assert self._head is not None
        status, headers = self._head
        reply = Reply(status, headers, self._body if status < 300 else None)
        self._head, self._body, self._view, self._filled = None, b"", memoryview(b""), 0
        return reply


def parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Read the status line and the headers of an answer.

    https://www.rfc-editor.org/rfc/rfc9112

    Args:
        head: Everything before the empty line.

    Returns:
        The status, and the headers by their names in lower case.

    Raises:
        NotUnderstood: It is an interim answer, or of an older HTTP, or has a header over several lines, or one that
            counts twice.
    """
    text = head.decode("latin-1")
    status = _STATUS_LINE.match(text)
    found = _HEADER.findall(text)
    headers = {name.lower(): value.rstrip(" \t") for name, value in found}
    if status is None or len(found) != text.count("\n"):
        raise NotUnderstood("no simple answer of HTTP/1.1")
    if len(headers) != len(found) and _SINGLE.intersection(_repeated(found)):
        raise NotUnderstood("a header that counts came twice")
    return int(status[1]), headers


def _repeated(found: list[tuple[str, str]]) -> set[str]:
    counts = Counter(name.lower() for name, _ in found)
    return {name for name, count in counts.items() if count > 1}


def _length(headers: dict[str, str]) -> int:
    length = headers.get("content-length", "")
    if "transfer-encoding" in headers or _LENGTH.fullmatch(length) is None:
        raise NotUnderstood("a body without an announced length")
    return int(length)
