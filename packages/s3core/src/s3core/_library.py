"""HTTP by urllib3, which knows all of it: for every write, through proxies, and for odd answers.

It carries no more than it is given: no environment variable or config file changes a request.
"""

from __future__ import annotations

import ctypes
import re
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from queue import Empty, Full
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from ._config import MiB, S3ClientConfig
from ._loading import load
from ._network import Network
from ._stop import Exchange, Stop
from ._wire import LONGEST_IDLE_SECONDS

if TYPE_CHECKING:
    import urllib3

T = TypeVar("T")

# With what sockets and headers import by themselves when they are first used.
_LIBRARIES = ("urllib3", "urllib3.exceptions", "encodings.idna", "email.utils")
Pieces = Sequence[bytes | bytearray | memoryview]
# Python's time limit is for all that one call sends; in the default of 30 s so much goes at 35 kB/s.
# https://docs.python.org/3/library/socket.html#socket.socket.sendall
_SENT_AT_ONCE = MiB
_NO_ADDRESS = bytes(16)  # of the family `AF_UNSPEC`


class Library:
    """Sends requests, each once, on connections that are used again.

    Args:
        config: Timeouts, how many connections to keep.
        network: Tells the proxy of an origin, and whom to trust.
    """

    def __init__(self, config: S3ClientConfig, network: Network) -> None:
        self._config = config
        self._network = network
        self._lock = threading.Lock()
        self._pools: dict[str, urllib3.HTTPConnectionPool] = {}
        self._now = _Now()

    def send(
        self,
        method: str,
        origin: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes | Pieces | None,
        stop: Stop,
    ) -> urllib3.BaseHTTPResponse:
        """Send a request and read the answer.

        Args:
            method: HTTP method.
            origin: Scheme, host and port.
            target: Path and query, percent-encoded.
            headers: All but `Host`.
            body: The body, whole or in pieces.
            stop: Ends it.

        Raises:
            NotConnected: There was no connection, so that nothing was sent.
            OSError: No whole answer came, or one of success before the whole body was sent.
        """
        with stop.exchange(has_body=body is not None) as exchange:
            whole = None if body is None else _Body([body] if isinstance(body, bytes) else body, exchange)
            now = self._now
            now.exchange, now.is_connected = exchange, False
            try:
                return self._urlopen(method, origin, target, headers, whole, preload_content=True)
            except OSError as error:
                if now.is_connected:
                    raise
                raise (_NotConnectedInTime if isinstance(error, TimeoutError) else NotConnected)(str(error)) from error
            finally:
                now.exchange = None

    def open(self, origin: str, target: str, headers: Mapping[str, str]) -> LibraryReply:
        """Send a GET and wait for the head of the answer; see `send`."""
        return LibraryReply(self._urlopen("GET", origin, target, headers, None, preload_content=False))

    def _urlopen(
        self,
        method: str,
        origin: str,
        target: str,
        headers: Mapping[str, str],
        body: _Body | None,
        *,
        preload_content: bool,
    ) -> urllib3.BaseHTTPResponse:
        load(*_LIBRARIES)
        pool = self._pool(origin)
        headers = dict(headers)
        if pool.proxy is not None and origin.startswith("http:"):
            # A proxy is told the whole URL, of which urllib3 would collapse dot segments; TLS goes through a tunnel.
            # https://www.rfc-editor.org/rfc/rfc9112#section-3.2.2
            target = f"{origin}{_DOT_SEGMENT.sub(_escape_dots, target)}"
            headers |= pool.proxy_headers
        return _translated(
            lambda: pool.urlopen(
                method,
                target,
                body=body,  # type: ignore[arg-type]  # urllib3 sends the items of any iterable.
                headers=headers,
                retries=False,
                redirect=False,
                assert_same_host=False,
                preload_content=preload_content,
                decode_content=False,
                enforce_content_length=True,  # not urllib3 1.26's default: a cut body would pass for a whole one
            )
        )

    def _pool(self, origin: str) -> urllib3.HTTPConnectionPool:
        with self._lock:
            pool = self._pools.get(origin)
            if pool is None:
                pool = self._pools[origin] = self._make_pool(origin)
            return pool

    def _make_pool(self, origin: str) -> urllib3.HTTPConnectionPool:
        import urllib3

        config, proxy = self._config, self._network.proxy(origin)
        options: dict[str, Any] = {
            "maxsize": config.concurrency,
            "timeout": urllib3.Timeout(connect=config.connect_timeout, read=config.read_timeout),
        }
        if origin.startswith("https:"):
            # urllib3 would make one for each connection. It may change it, and so gets one of its own.
            options["ssl_context"] = self._network.new_tls()
        manager: urllib3.PoolManager
        if proxy is None:
            manager = urllib3.PoolManager(**options)
        else:
            parts = urlsplit(proxy)
            if parts.scheme == "https":
                options["proxy_ssl_context"] = self._network.new_tls()
            if parts.username:
                options["proxy_headers"] = urllib3.make_headers(
                    proxy_basic_auth=f"{unquote(parts.username)}:{unquote(parts.password or '')}"
                )
            host = parts.netloc.rpartition("@")[2]  # Not the password, which would be in messages.
            manager = urllib3.ProxyManager(f"{parts.scheme}://{host}", **options)
        kinds: dict[str, Any] = manager.pool_classes_by_scheme
        manager.pool_classes_by_scheme = {
            scheme: type(
                kind.__name__,
                (kind,),
                {"QueueCls": _Idle, "ConnectionCls": _careful(kind.ConnectionCls, config.read_timeout, self._now)},
            )
            for scheme, kind in kinds.items()
        }
        return manager.connection_from_url(origin)


class LibraryReply:
    """An answer whose body is to come.

    Args:
        response: It.
    """

    tells_count = False  # how much a read that fails has put into place

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        import http.client
        import socket

        self._sockets = socket  # Nothing can be imported when the interpreter ends.
        self._response = response
        # urllib3's own `readinto` reads into new memory and copies.
        raw: Any = getattr(response, "_fp", None)
        self._raw = raw if isinstance(raw, http.client.HTTPResponse) else response
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers

    def readinto(self, place: memoryview) -> int:
        """Fill memory with what comes next; no bytes where the connection ended."""
        count: int = _translated(lambda: self._raw.readinto(place))
        return count

    def read_error(self) -> bytes:
        """Read the body of an error."""
        return self.read_body()

    def read_body(self) -> bytes:
        """Read all of the body."""
        body: bytes = _translated(self._response.read)
        self._response.release_conn()
        return body

    def interrupt(self) -> None:
        """Have a call of `readinto` that waits return or fail at once; for any thread."""
        sockets = self._sockets
        # Beneath TLS, which has a `shutdown` of its own. It may have ended by itself just now.
        with (
            suppress(OSError, ValueError, AttributeError),
            sockets.fromfd(self._raw.fileno(), sockets.AF_INET, sockets.SOCK_STREAM) as connection,
        ):
            connection.shutdown(sockets.SHUT_RDWR)

    def release(self) -> None:
        """Let the connection be used again: the body was read."""
        from urllib3.util.response import is_fp_closed

        if is_fp_closed(self._raw):  # and not before the end of a chunked body
            self._response.release_conn()

    def close(self) -> None:
        """End the connection, unless it was released."""
        self._response.close()


class _Now(threading.local):
    """What the connections of a thread are used for now; urllib3 hands nothing of ours down to them.

    Attributes:
        exchange: It.
        is_connected: Whether there is a connection to send it by: through the proxy and TLS, where there are such.
    """

    exchange: Exchange | None = None
    is_connected = False


class _Body:
    """The body of a request.

    Args:
        pieces: Its bytes.
        exchange: What it belongs to.
    """

    def __init__(self, pieces: Pieces, exchange: Exchange) -> None:
        self._pieces = pieces
        self._exchange = exchange

    def __iter__(self) -> Iterator[memoryview]:
        for piece in self._pieces:
            view = memoryview(piece)
            for start in range(0, len(view), _SENT_AT_ONCE):
                self._exchange.check()
                yield view[start : start + _SENT_AT_ONCE]
        self._exchange.is_sending = False


class _Idle:
    """Connections of a pool that wait to be used, the last one first.

    Without the lock of `queue.LifoQueue`: urllib3 empties it when the interpreter ends, also that of a child of
    `os.fork`, for which the thread that held the lock is not there to give it back.

    Args:
        maxsize: How many.
    """

    def __init__(self, maxsize: int) -> None:
        self._most = maxsize
        self._connections: list[tuple[float, Any]] = []  # Since when each is idle; None where one may be made.

    def put(self, connection: Any, block: bool = True, timeout: float | None = None) -> None:
        """Keep one, unless there are too many; waits for nothing."""
        if len(self._connections) >= self._most:
            raise Full
        self._connections.append((time.monotonic(), connection))

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take one that was not idle for long; waits for nothing."""
        oldest = time.monotonic() - LONGEST_IDLE_SECONDS
        try:
            while True:
                since, connection = self._connections.pop()
                if connection is None or since > oldest:
                    return connection
                connection.close()
        except IndexError:
            raise Empty from None

    def qsize(self) -> int:
        """How many there are."""
        return len(self._connections)


def _careful(kind: Any, seconds: float, now: _Now) -> Any:
    """A class of connections that mistake no answer, where urllib3's own would.

    They also wait longer for sending than for connecting, and can be stopped.

    Args:
        kind: urllib3's class.
        seconds: How long to wait.
        now: What they are used for.
    """
    import http.client
    import socket
    import ssl

    drop = _find_drop()

    class FinalResponse(http.client.HTTPResponse):
        def begin(self) -> None:
            super().begin()
            while self.status < 200:  # The answer is still to come; `http.client` knows that of 100 only.
                self.headers = self.msg = None  # type: ignore[assignment]
                super().begin()

    class Careful(kind):  # type: ignore[misc]
        response_class = FinalResponse
        is_cut = False

        def connect(self) -> None:
            super().connect()
            self.sock.settimeout(seconds)
            if now.exchange is not None:  # While there was no connection, it could not be cut.
                now.exchange.check()
            now.is_connected = True

        def request(self, *args: Any, **kwargs: Any) -> None:
            self.is_cut = False
            if self.sock is not None:
                self.timeout = seconds  # which urllib3 sets the socket to; so far it is that for connecting
                now.is_connected = True
            try:
                if now.exchange is not None:
                    now.exchange.begin(self.cut)
                super().request(*args, **kwargs)
            except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
                # The store reads no more: it may have said why.
                self.is_cut = True

        def getresponse(self) -> Any:
            try:
                response = super().getresponse()
            except BaseException:
                self.cut()  # Else the system sends the rest of the request, which the store may carry out late.
                raise
            if self.is_cut and response.status < 300:
                self.close()
                raise http.client.HTTPException(f"the store answered {response.status} before it had the whole request")
            return response

        def cut(self) -> None:
            # Beneath TLS, which has a `shutdown` of its own. It may have ended by itself just now.
            with suppress(OSError, TypeError, AttributeError):
                if not drop(self.sock.fileno()):
                    # When it is closed now, what the system has not sent yet is dropped; see `socket(7)`.
                    linger = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
                    socket.socket.setsockopt(self.sock, socket.SOL_SOCKET, socket.SO_LINGER, linger)
                # What was dropped is not connected, which OpenSSL would take for a reason to read again and again.
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)

    Careful.__name__ = kind.__name__  # which is in messages
    return Careful


def _find_drop() -> Callable[[int], bool]:
    """What ends a connection at once, with what the system has not sent yet, and says whether it could.

    Closing it does not, where a child of fork has it too; see `connect(2)`.
    """
    if sys.platform != "linux":
        return lambda descriptor: False
    # Without giving Python's lock up: the descriptor must not become another connection's meanwhile.
    connect = ctypes.PyDLL(None).connect
    connect.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    connect.restype = ctypes.c_int
    return lambda descriptor: bool(connect(descriptor, _NO_ADDRESS, len(_NO_ADDRESS)) == 0)


class NotConnected(OSError):
    """There was no connection, so that nothing was sent."""


class _NotConnectedInTime(NotConnected, TimeoutError):
    """There was none in time."""


def _translated(call: Callable[[], T]) -> T:
    """Make an `OSError` of every way in which a connection fails."""
    import http.client

    import urllib3.exceptions as http_errors

    try:
        return call()
    except (http_errors.HTTPError, http.client.HTTPException) as error:
        _let_go(error)
        # urllib3 counts a refused connection among the timeouts.
        is_late = isinstance(error, http_errors.TimeoutError) and not isinstance(error, http_errors.NewConnectionError)
        is_late |= any(isinstance(reason, TimeoutError) for reason in error.args)  # while the body was sent
        said = error.args[-1] if isinstance(error, http_errors.ConnectTimeoutError) else error
        raise (TimeoutError if is_late else ConnectionError)(_words(said)) from error


def _let_go(error: BaseException | None) -> None:
    """Keep no local of the calls that ended with an error: views of the body are among them, and urllib3 makes cycles.

    Else a buffer that was lent for the request could not be resized before the garbage collector comes.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def _words(error: object) -> str:
    """The reason without object addresses."""
    return _OBJECT.sub("", str(error)) or type(error).__name__


_OBJECT = re.compile(r"^(<.*?>|\w+\(.*?\)): ")

_DOT_SEGMENT = re.compile(r"(?<=/)\.{1,2}(?=[/?]|$)")


def _escape_dots(segment: re.Match[str]) -> str:
    return segment.group().replace(".", "%2E")
