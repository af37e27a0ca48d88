"""Signed S3 requests of our own: for every write, for listings, and for keys that obstore cannot say.

The requests go through urllib3 and carry no more than is written here: no environment variable or config file changes
them.
"""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from ._address import Address
from ._credentials import Credentials
from ._errors import (
    OUTDATED_KEYS_CODES,
    RETRIED_CODES,
    RETRIED_STATUSES,
    WRONG_REGION_CODES,
    Failure,
    connection_error,
    error_for,
    parse_failure,
    timeout_error,
)
from ._exceptions import S3ConnectionError, S3Exception
from ._loading import load, loading
from ._settings import proxy_for
from ._signature import sign
from ._uri import uri_of

if TYPE_CHECKING:
    import ssl

    import urllib3

    from ._runtime import Runtime

logger = logging.getLogger("s3core")

# With what sockets and headers import by themselves when they are first used.
_LIBRARIES = ("urllib3", "urllib3.exceptions", "encodings.idna", "email.utils")
Pieces = Sequence[bytes | bytearray | memoryview]

_FIRST_BACKOFF_SECONDS = 0.1
_LONGEST_BACKOFF_SECONDS = 10.0
_REGION_HEADER = "x-amz-bucket-region"
_PASSING_CODES = frozenset({"InternalError", "ServiceUnavailable", "SlowDown"})


@dataclass(frozen=True, slots=True)
class Request:
    """One S3 request.

    Args:
        method: HTTP method.
        bucket: The bucket.
        key: The key; empty for requests to the bucket.
        query: Query parameters, unescaped.
        headers: Headers beside those of the signature.
        body: The body, whole or in pieces, kept unchanged until the answer is there.
        what: The operation's name for messages; the method if empty.
        stream: Leave the body of a good answer unread.
        stop: When this is set, no further attempt is made.
        attempts_made: How many attempts were made before, elsewhere.
    """

    method: str
    bucket: str
    key: str = ""
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Pieces | None = None
    what: str = ""
    stream: bool = False
    stop: threading.Event | None = None
    attempts_made: int = 0

    @property
    def operation(self) -> str:
        """The name for messages."""
        return self.what or self.method

    @property
    def uri(self) -> str:
        """The `s3://bucket/key` for messages."""
        return uri_of(self.bucket, self.key)


class Refused(Exception):
    """The store answered with an error; callers that know what to do about one catch it, the others translate it."""

    def __init__(self, failure: Failure, request: Request) -> None:
        super().__init__(f"{failure.status} {failure.code}")
        self.failure = failure
        self.request = request

    def translated(self) -> S3Exception:
        """The error to raise to the user."""
        return error_for(self.failure, self.request.operation, self.request.uri)


class RestClient:
    """Sends requests, with retries, renewed credentials and corrected regions.

    Args:
        runtime: Whose settings, credentials and addresses to use.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lock = threading.Lock()
        self._pools: dict[str, urllib3.HTTPConnectionPool] = {}
        self._proxies: dict[str, str | None] = {}
        self._tls: ssl.SSLContext | None = None

    def send(self, request: Request) -> urllib3.BaseHTTPResponse:
        """Send a request and translate an error answer.

        Returns:
            The answer, its body read unless the request says `stream`.

        Raises:
            S3Exception: It failed in every attempt.
        """
        try:
            return self.try_send(request)
        except Refused as refused:
            raise refused.translated() from None

    def try_send(self, request: Request) -> urllib3.BaseHTTPResponse:
        """Send a request and leave an error answer to the caller.

        Raises:
            Refused: The store answered with an error, for good.
            S3Exception: No answer came.
        """
        load(*_LIBRARIES)
        import urllib3.exceptions as http

        attempts = self._runtime.config.max_attempts
        corrections = 2  # One new region, one new set of credentials.
        attempt = request.attempts_made
        if attempt:
            back_off(attempt, request.stop)
        while True:
            attempt += 1
            address = self._runtime.address(request.bucket)
            keys = self._runtime.keys()
            try:
                response = self._send_once(request, address, keys, attempt)
            except (http.HTTPError, OSError) as error:
                if attempt >= attempts or _is_hopeless(error):
                    # urllib3 counts a refused connection among the timeouts.
                    late = isinstance(error, http.TimeoutError | TimeoutError)
                    late = late and not isinstance(error, http.NewConnectionError)
                    make = timeout_error if late else connection_error
                    raise make(request.operation, request.uri, _words(error), attempt) from error
            else:
                if response.status < 300:
                    return response
                failure = parse_failure(response.status, response.data, response.headers.get(_REGION_HEADER))
                if corrections and self._correct(request, failure, keys, address):
                    corrections -= 1
                    attempt -= 1
                    continue
                passes = response.status in RETRIED_STATUSES or failure.code in RETRIED_CODES
                if not passes or attempt >= attempts:
                    raise Refused(failure, request)
            back_off(attempt, request.stop)
            if request.stop is not None and request.stop.is_set():
                raise S3Exception(f"{request.operation} of {request.uri} was given up")

    def try_send_whole(self, request: Request) -> bytes:
        """Send a request that the store may answer with 200 before it finds an error.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html

        Returns:
            The body of a good answer.

        Raises:
            Refused: The store answered with an error, for good.
            S3Exception: No answer came.
        """
        attempt = 0
        while True:
            attempt += 1
            body: bytes = self.try_send(request).data
            if b"<Error" not in body:
                return body
            failure = parse_failure(500, body)
            if attempt >= self._runtime.config.max_attempts or failure.code not in _PASSING_CODES:
                raise Refused(failure, request)
            back_off(attempt, request.stop)

    def find_region(self, bucket: str) -> str:
        """Ask AWS where a bucket is; every answer says so, an error too.

        Args:
            bucket: The bucket's name.

        Raises:
            S3Exception: AWS cannot be reached, or names no region.
        """
        # https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadBucket.html: the header comes without permission too.
        load(*_LIBRARIES)
        import urllib3.exceptions as http

        try:
            response = self._pool("https://s3.us-east-1.amazonaws.com").urlopen(
                "HEAD", f"/{quote(bucket)}", headers={"User-Agent": self._runtime.settings.user_agent}, redirect=False
            )
        except (http.HTTPError, OSError) as error:
            raise S3ConnectionError(
                f"the region of s3://{bucket} is unknown and AWS cannot be asked ({_words(error)}); "
                "set region, AWS_REGION or, for a store that is not AWS, endpoint"
            ) from error
        region = response.headers.get(_REGION_HEADER)
        if region is None:
            code = "NoSuchBucket" if response.status == 404 else ""
            raise error_for(Failure(response.status, code), "HEAD", uri_of(bucket))
        return region

    def ask_region(self, bucket: str) -> str | None:
        """Ask the store where a bucket is, after it refused a request without saying so; None when it does not tell."""
        try:
            response = self.try_send(Request("HEAD", bucket))
        except (Refused, S3Exception):
            return None
        return response.headers.get(_REGION_HEADER) or self._runtime.address(bucket).region

    def _correct(self, request: Request, failure: Failure, keys: Credentials | None, address: Address) -> bool:
        """Mend what made the store refuse, where that can be: say whether to send again at once."""
        # The answer to a HEAD has no body: of an expired token only the status tells.
        is_outdated = failure.code in OUTDATED_KEYS_CODES or (failure.status == 400 and request.method == "HEAD")
        if is_outdated and keys is not None and not failure.region:
            return self._runtime.credentials.renew(keys)
        wrong_region = failure.code in WRONG_REGION_CODES or failure.status in (301, 307)
        if failure.region and (wrong_region or (failure.status == 400 and request.method == "HEAD")):
            return self._runtime.correct_region(request.bucket, failure.region, address.region)
        return False

    def _send_once(
        self, request: Request, address: Address, keys: Credentials | None, attempt: int
    ) -> urllib3.BaseHTTPResponse:
        target, headers = self.prepare(request, address, keys)
        pool = self._pool(address.origin)
        if pool.proxy is not None and address.origin.startswith("http:"):
            # A proxy is told the whole URL, of which urllib3 would collapse dot segments; TLS goes through a tunnel.
            # https://www.rfc-editor.org/rfc/rfc9112#section-3.2.2
            target = f"{address.origin}{_DOT_SEGMENT.sub(_escape_dots, target)}"
            headers = {**headers, **pool.proxy_headers}
        started = time.perf_counter()
        status: int | str = "no answer"
        try:
            response = pool.urlopen(
                request.method,
                target,
                body=request.body,  # type: ignore[arg-type]  # urllib3 sends the items of any iterable.
                headers=headers,
                retries=False,
                redirect=False,
                assert_same_host=False,
                preload_content=not request.stream,
                decode_content=False,
                enforce_content_length=True,  # not urllib3 1.26's default: a cut body would pass for a whole one
            )
            if request.stream and response.status >= 300:
                response.read(cache_content=True)  # for `data`
                response.release_conn()
            status = response.status
            return response
        finally:
            logger.debug(
                "%s %s attempt %d: %s in %.1f ms",
                request.operation,
                request.uri,
                attempt,
                status,
                1000 * (time.perf_counter() - started),
            )

    def prepare(self, request: Request, address: Address, keys: Credentials | None) -> tuple[str, dict[str, str]]:
        """Say what a request is on the wire.

        Args:
            request: The request.
            address: Where its bucket is.
            keys: What to sign it with; None for not at all.

        Returns:
            Path and query, and all of its headers but `Host`.
        """
        target = address.target(request.key, request.query)
        headers = self._headers(request)
        if keys is not None:
            headers = sign(request.method, address.host, target, headers, keys, address.region)
        return target, headers

    def _headers(self, request: Request) -> dict[str, str]:
        config = self._runtime.config
        headers = {"User-Agent": self._runtime.settings.user_agent}
        if config.requester_pays:
            headers["x-amz-request-payer"] = "requester"
        if config.expected_bucket_owner is not None:
            headers["x-amz-expected-bucket-owner"] = config.expected_bucket_owner
        if request.body is None and request.method in ("PUT", "POST"):
            headers["Content-Length"] = "0"
        elif request.body is not None and not isinstance(request.body, bytes):
            headers["Content-Length"] = str(sum(len(piece) for piece in request.body))
        headers.update(request.headers)
        return headers

    def proxy(self, origin: str) -> str | None:
        """Through which proxy an origin is reached; None for a direct connection."""
        if origin not in self._proxies:
            self._proxies[origin] = proxy_for(origin, self._runtime.config)
        return self._proxies[origin]

    def tls(self) -> ssl.SSLContext:
        """Whom exchanges trust: the certificates of the settings, or the system's; urllib3 has contexts of its own."""
        load("ssl")
        import ssl

        with loading:  # The first one starts OpenSSL, which no child may inherit half.
            if self._tls is None:
                self._tls = ssl.create_default_context(cafile=self._runtime.settings.ca_bundle)
                self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls

    def _pool(self, origin: str) -> urllib3.HTTPConnectionPool:
        with self._lock:
            pool = self._pools.get(origin)
            if pool is None:
                pool = self._pools[origin] = self._make_pool(origin)
            return pool

    def _make_pool(self, origin: str) -> urllib3.HTTPConnectionPool:
        import urllib3

        config = self._runtime.config
        options: dict[str, Any] = {
            "maxsize": config.concurrency,
            "timeout": urllib3.Timeout(connect=config.connect_timeout, read=config.read_timeout),
        }
        if self._runtime.settings.ca_bundle is not None:
            options["ca_certs"] = self._runtime.settings.ca_bundle
        if origin.startswith("https"):
            load("ssl")
            import ssl

            with loading:
                ssl.SSLContext(
                    ssl.PROTOCOL_TLS_CLIENT
                )  # The first one starts OpenSSL, which no child may inherit half.
        proxy = self.proxy(origin)
        manager: urllib3.PoolManager
        if proxy is None:
            manager = urllib3.PoolManager(**options)
        else:
            parts = urlsplit(proxy)
            if parts.username:
                options["proxy_headers"] = urllib3.make_headers(
                    proxy_basic_auth=f"{unquote(parts.username)}:{unquote(parts.password or '')}"
                )
            manager = urllib3.ProxyManager(proxy, **options)
        return manager.connection_from_url(origin)


_DOT_SEGMENT = re.compile(r"(?<=/)\.{1,2}(?=[/?]|$)")


def _escape_dots(segment: re.Match[str]) -> str:
    return segment.group().replace(".", "%2E")


def back_off(attempt: int, stop: threading.Event | None = None) -> None:
    """Wait before the next attempt: exponential, with full jitter.

    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/

    Args:
        attempt: How many were made.
        stop: Ends the wait early.
    """
    seconds = random.uniform(0, min(_LONGEST_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2 ** (attempt - 1)))
    if stop is None:
        time.sleep(seconds)
    else:
        stop.wait(seconds)


def _is_hopeless(error: BaseException) -> bool:
    """Whether another attempt cannot help: the certificate is refused, the host has no address."""
    import urllib3.exceptions as http

    return isinstance(error, http.SSLError | http.LocationValueError) and "CERTIFICATE_VERIFY_FAILED" in str(error)


def _words(error: BaseException) -> str:
    """The reason without object addresses."""
    text = str(error)
    return text.partition(">: ")[2] or text.partition(": ")[2] or text or type(error).__name__
