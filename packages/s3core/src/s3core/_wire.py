"""HTTP/1.1 as connections of our own speak it: a GET, and what an S3 store answers to it when all is well.

Everything else is refused, so that whoever asked asks again by a library that knows the rest of HTTP.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ._loading import load

if TYPE_CHECKING:
    import socket
    import ssl

HEAD_END = b"\r\n\r\n"
LONGEST_HEAD = 16 * 1024
# For a usual head, and the beginning of the body, which is copied from there; the rest of it is read into place.
USUAL_HEAD = 4 * 1024
# A connection that was idle for longer may have been forgotten on the way, without a word.
LONGEST_IDLE_SECONDS = 30.0
_MOST_ODDITIES = 8
_ODD_SECONDS = 60.0

_STATUS_LINE = re.compile(r"HTTP/1\.1 ([2-5][0-9][0-9])(?: [^\r\n]*)?(?:\r\n|$)")
_HEADER = re.compile(r"\r\n([!#$%&'*+.^_`|~0-9A-Za-z-]++):[ \t]*+([^\r\n]*+)(?=\r\n|$)")
# Others may come several times, as some stores' `Vary` does.
_SINGLE = frozenset({"connection", "content-length", "content-range", "etag", "transfer-encoding"})
_LENGTH = re.compile(r"[0-9]{1,15}")
_CHUNK_LENGTH = re.compile(rb"([0-9A-Fa-f]{1,12})[ \t]*(?:;|\Z)")


class NotUnderstood(Exception):
    """The answer is none of those that are understood here."""


class Oddities:
    """Answers in a row that were not understood: after some of them it is no use to ask in this way for a while."""

    def __init__(self) -> None:
        self._count = 0
        self._since = 0.0

    @property
    def are_too_many(self) -> bool:
        """Whether to ask in another way for now."""
        return self._count >= _MOST_ODDITIES and time.monotonic() - self._since <= _ODD_SECONDS

    def note(self) -> None:
        """Take note of an answer that was not understood."""
        self._count += 1
        self._since = time.monotonic()

    def forget(self) -> None:
        """An answer was understood."""
        self._count = 0


def open_socket(origin: str, timeout: float, tls: Callable[[], ssl.SSLContext]) -> socket.socket:
    """Connect to an origin; waits for the network.

    Args:
        origin: Scheme, host and port.
        timeout: Seconds to wait for each step.
        tls: How to trust the other side, asked where there is TLS.

    Raises:
        OSError: It cannot be reached or is not to be trusted.
    """
    load("socket", "encodings.idna")
    import socket

    parts = urlsplit(origin)
    host, is_tls = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if is_tls else 80)
    try:
        plain = socket.create_connection((host, port), timeout)
    except TimeoutError as error:
        raise TimeoutError(f"{host}:{port}: no connection in {timeout} s") from error
    except OSError as error:
        raise OSError(error.errno, f"{host}:{port}: {error.strerror or error}") from error
    try:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not is_tls:
            return plain
        return tls().wrap_socket(plain, server_hostname=host.rstrip("."))  # which closes `plain` when it fails
    except BaseException:
        plain.close()
        raise


def get_request(target: str, host: str, headers: Mapping[str, str]) -> bytes:
    """A GET on the wire.

    Args:
        target: Path and query.
        host: The `Host` header.
        headers: The others.

    Raises:
        ValueError: One of them has a line end.
    """
    lines = [
        f"GET {target} HTTP/1.1",
        f"Host: {host}",
        "Accept-Encoding: identity",
        *[f"{name}: {value}" for name, value in headers.items()],
    ]
    wire = "\r\n".join(lines)
    if wire.count("\n") != len(lines) - 1 or wire.count("\r") != len(lines) - 1:
        raise ValueError("a header has a line end")
    return f"{wire}\r\n\r\n".encode("latin-1")


def check_begun_head(came: bytes | bytearray) -> None:
    """Refuse the beginning of a head that will never come to the end which is waited for.

    Raises:
        NotUnderstood: It is too long, or has line ends of its own.
    """
    if len(came) > LONGEST_HEAD or b"\n\n" in came:
        raise NotUnderstood("a long head, or one with line ends of its own")


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


def content_length(headers: Mapping[str, str]) -> int | None:
    """What `Content-Length` says; None where it is missing, or no number."""
    length = headers.get("content-length", "")
    return int(length) if _LENGTH.fullmatch(length) else None


def body_length(headers: Mapping[str, str]) -> int:
    """How many bytes of body come.

    Raises:
        NotUnderstood: It is not announced.
    """
    length = content_length(headers)
    if "transfer-encoding" in headers or length is None:
        raise NotUnderstood("a body without an announced length")
    return length


def is_chunked(headers: Mapping[str, str]) -> bool:
    """Whether the body comes in chunks, as errors and listings of AWS do."""
    return headers.get("transfer-encoding", "").lower() == "chunked"


class Chunks:
    """Puts a body together that comes in chunks.

    https://www.rfc-editor.org/rfc/rfc9112#section-7.1
    """

    def __init__(self) -> None:
        self.body = bytearray()
        self.is_whole = False
        self._came = bytearray()

    @property
    def rest(self) -> int:
        """How many bytes came that are not of the body: of a whole one, behind its end."""
        return len(self._came)

    def take(self, piece: bytes | memoryview) -> None:
        """Take what came next.

        Raises:
            NotUnderstood: These are no chunks.
        """
        came = self._came
        came += piece
        position = 0
        while not self.is_whole and (end := came.find(b"\r\n", position)) >= 0:
            length = _CHUNK_LENGTH.match(came, position, end)
            if length is None:
                raise NotUnderstood("a chunk without a length")
            size = int(length[1], 16)
            begin = end + 2
            # Behind the last chunk there may be headers; an empty line ends them.
            close = came.find(HEAD_END, end) + 2 if not size else begin + size
            if close < begin or len(came) < close + 2:
                break
            if came[close : close + 2] != b"\r\n":
                raise NotUnderstood("a chunk that is longer than it says")
            self.body += came[begin : begin + size]
            self.is_whole = not size
            position = close + 2
        del came[:position]


def is_last(headers: Mapping[str, str]) -> bool:
    """Whether the store closes the connection behind this answer."""
    return headers.get("connection", "").lower() == "close"


def _repeated(found: list[tuple[str, str]]) -> set[str]:
    counts = Counter(name.lower() for name, _ in found)
    return {name for name, count in counts.items() if count > 1}
