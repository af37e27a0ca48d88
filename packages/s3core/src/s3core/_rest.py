"""Signed S3 requests of our own: for every write, for listings, and for large ranges and odd keys.

Large ranges go by connections of our own, everything else by urllib3.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar
from urllib.parse import quote

from ._address import Address
from ._connections import Connections
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
from ._library import Library, Pieces
from ._loading import load, loading
from ._settings import proxy_for
from ._signature import sign
from ._uri import uri_of
from ._wire import NotUnderstood, get_request

if TYPE_CHECKING:
    import ssl

    import urllib3

    from ._runtime import Runtime

logger = logging.getLogger("s3core")

_FIRST_BACKOFF_SECONDS = 0.1
_LONGEST_BACKOFF_SECONDS = 10.0
_AWS = "https://s3.us-east-1.amazonaws.com"
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
        stop: When this is set, no attempt is begun any more.
        attempts_made: How many attempts were made before, elsewhere.
    """

    method: str
    bucket: str
    key: str = ""
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Pieces | None = None
    what: str = ""
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


class Answered(Protocol):
    """The head of an answer."""

    @property
    def status(self) -> int:
        """HTTP status."""

    @property
    def headers(self) -> Mapping[str, str]:
        """By their names in lower case, or in any."""


class Reply(Answered, Protocol):
    """An answer whose body is to come."""

    @property
    def tells_count(self) -> bool:
        """Whether `readinto` fails only when it has put nothing into place."""

    def readinto(self, place: memoryview) -> int:
        """Fill memory with what comes next; no bytes where the connection ended."""

    def read_error(self) -> bytes:
        """Read the body of an error, if it is a short one."""

    def interrupt(self) -> None:
        """Have a call of `readinto` that waits return or fail at once; for any thread."""

    def release(self) -> None:
        """Let the connection be used again: the body was read."""

    def close(self) -> None:
        """End the connection, unless it was released."""


A = TypeVar("A", bound=Answered)


class RestClient:
    """Sends requests, with retries, renewed credentials and corrected regions.

    Args:
        runtime: Whose settings, credentials and addresses to use.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        config = runtime.config
        self._proxies: dict[str, str | None] = {}
        self._tls: ssl.SSLContext | None = None
        self._library = Library(runtime.settings, self.proxy)
        self._connections = Connections(config.concurrency, config.connect_timeout, config.read_timeout, self.tls)

    def send(self, request: Request) -> urllib3.BaseHTTPResponse:
        """Send a request, read the answer, and translate an error.

        Raises:
            S3Exception: It failed in every attempt.
        """
        try:
            return self.try_send(request)
        except Refused as refused:
            raise refused.translated() from None

    def try_send(self, request: Request) -> urllib3.BaseHTTPResponse:
        """Send a request, read the answer, and leave an error to the caller.

        Raises:
            Refused: The store answered with an error, for good.
            S3Exception: No answer came.
        """

        def once(address: Address, keys: Credentials | None) -> urllib3.BaseHTTPResponse:
            target, headers = self.prepare(request, address, keys)
            return self._library.send(request.method, address.origin, target, headers, request.body)

        return self._in_attempts(request, once, lambda response: response.data)

    def try_open(self, request: Request) -> Reply:
        """Send a GET and wait for the head of the answer.

        Raises:
            Refused: The store answered with an error, for good.
            S3Exception: No answer came.
        """

        def once(address: Address, keys: Credentials | None) -> Reply:
            target, headers = self.prepare(request, address, keys)
            if self._connections.is_understood and self.proxy(address.origin) is None:
                try:
                    return self._connections.open(address.origin, get_request(target, address.host, headers))
                except (NotUnderstood, ValueError) as error:
                    if isinstance(error, OSError):  # A refused certificate is a ValueError too.
                        raise
                    logger.debug("an answer of %s is asked for in another way: %s", address.origin, error)
            return self._library.open(address.origin, target, headers)

        return self._in_attempts(request, once, lambda reply: reply.read_error())

    def _in_attempts(
        self,
        request: Request,
        once: Callable[[Address, Credentials | None], A],
        body_of: Callable[[A], bytes],
    ) -> A:
        """Send a request until there is an answer that is no error, or no hope of one."""
        attempts = self._runtime.config.max_attempts
        corrections = 2  # One new region, one new set of credentials.
        attempt = request.attempts_made
        if attempt:
            back_off(attempt, request.stop)
        while True:
            if request.stop is not None and request.stop.is_set():  # It may have waited for a thread until now.
                raise S3Exception(f"{request.operation} of {request.uri} was given up")
            attempt += 1
            address = self._runtime.address(request.bucket)
            keys = self._runtime.keys()
            try:
                answer, body = self._logged(request, attempt, partial(once, address, keys), body_of)
            except OSError as error:
                reason = _reason(error)
                if attempt >= attempts or _is_hopeless(reason):
                    make = timeout_error if isinstance(error, TimeoutError) else connection_error
                    raise make(request.operation, request.uri, reason, attempt) from error
            else:
                if answer.status < 300:
                    return answer
                failure = parse_failure(answer.status, body, answer.headers.get(_REGION_HEADER))
                if corrections and self._correct(request, failure, keys, address):
                    corrections -= 1
                    attempt -= 1
                    continue
                passes = answer.status in RETRIED_STATUSES or failure.code in RETRIED_CODES
                if not passes or attempt >= attempts:
                    raise Refused(failure, request)
            back_off(attempt, request.stop)

    def _logged(
        self, request: Request, attempt: int, once: Callable[[], A], body_of: Callable[[A], bytes]
    ) -> tuple[A, bytes]:
        """Send a request once; with the answer comes its body if it is an error."""
        started = time.perf_counter()
        outcome: object = "no answer"
        try:
            answer = once()
            body = body_of(answer) if answer.status >= 300 else b""
            outcome = answer.status
            return answer, body
        finally:
            if logger.isEnabledFor(logging.DEBUG):
                took = 1000 * (time.perf_counter() - started)
                words = request.operation, request.uri, attempt, outcome, took
                logger.debug("%s %s attempt %d: %s in %.1f ms", *words)

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
        response = self._ask_aws(bucket)
        region = response.headers.get(_REGION_HEADER)
        if region is None:
            code = "NoSuchBucket" if response.status == 404 else ""
            raise error_for(Failure(response.status, code), "HEAD", uri_of(bucket))
        return region

    def _ask_aws(self, bucket: str) -> urllib3.BaseHTTPResponse:
        headers = {"User-Agent": self._runtime.settings.user_agent}
        attempt = 1
        while True:
            try:
                return self._library.send("HEAD", _AWS, f"/{quote(bucket)}", headers)
            except OSError as error:
                reason = _reason(error)
                if attempt >= self._runtime.config.max_attempts or _is_hopeless(reason):
                    raise S3ConnectionError(
                        f"the region of s3://{bucket} is unknown and AWS cannot be asked ({reason}); "
                        "set region, AWS_REGION or, for a store that is not AWS, endpoint"
                    ) from error
            back_off(attempt)
            attempt += 1

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
        headers = self.headers(request)
        if keys is not None:
            headers = sign(request.method, address.host, target, headers, keys, address.region)
        return target, headers

    def headers(self, request: Request) -> dict[str, str]:
        """All headers of a request but `Host` and those of its signature."""
        config = self._runtime.config
        headers = {"User-Agent": self._runtime.settings.user_agent}
        if config.requester_pays:
            headers["x-amz-request-payer"] = "requester"
        if config.expected_bucket_owner is not None:
            headers["x-amz-expected-bucket-owner"] = config.expected_bucket_owner
        body = request.body
        if body is not None:
            headers["Content-Length"] = str(len(body) if isinstance(body, bytes) else sum(map(len, body)))
        elif request.method in ("PUT", "POST"):
            headers["Content-Length"] = "0"
        headers.update(request.headers)
        return headers

    def proxy(self, origin: str) -> str | None:
        """Through which proxy an origin is reached; None for a direct connection."""
        if origin not in self._proxies:
            self._proxies[origin] = proxy_for(origin, self._runtime.config)
        return self._proxies[origin]

    def tls(self) -> ssl.SSLContext:
        """Whom our own connections trust: the certificates of the settings, or the system's."""
        load("ssl")
        import ssl

        with loading:  # The first one starts OpenSSL, which no child may inherit half.
            if self._tls is None:
                self._tls = ssl.create_default_context(cafile=self._runtime.settings.ca_bundle)
                self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls


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


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__


def _is_hopeless(reason: str) -> bool:
    """Whether another attempt cannot help: the certificate is refused."""
    return "CERTIFICATE_VERIFY_FAILED" in reason
