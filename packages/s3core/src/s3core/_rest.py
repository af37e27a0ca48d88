"""Sends S3 requests of our own: every write, listings, and large ranges and odd keys.

Large ranges and listings go by connections of our own, everything else by urllib3.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar
from urllib.parse import quote

from ._address import Address
from ._connections import Connections
from ._credentials import Credentials
from ._errors import (
    CERTIFICATE_REFUSED,
    OUTDATED_KEYS_CODES,
    RETRIED_CODES,
    RETRIED_STATUSES,
    TUNNEL_REFUSED,
    WRONG_REGION_CODES,
    Failure,
    connection_error,
    error_for,
    in_doubt,
    parse_failure,
    timeout_error,
)
from ._exceptions import S3ConnectionError, S3Exception, S3TimeoutError
from ._library import Library, NotConnected
from ._pool import wait_for
from ._request import Refused, Request, prepare
from ._stop import Stop
from ._uri import uri_of
from ._wire import NotUnderstood, get_request

if TYPE_CHECKING:
    import urllib3

    from ._runtime import Runtime

logger = logging.getLogger("s3core")

_FIRST_BACKOFF_SECONDS = 0.1
_LONGEST_BACKOFF_SECONDS = 10.0
_AWS = "https://s3.us-east-1.amazonaws.com"
_REGION_HEADER = "x-amz-bucket-region"
_DOUBTFUL_STATUSES = frozenset({500, 502, 504})  # Of a change that the store may have made, or may still make.
_DECIDING_STATUSES = frozenset({404, 409, 412, 501})  # Callers look at what is there, whatever earlier attempts did.
_DECIDED_CODES = {"ConditionalRequestConflict": 409, "NoSuchUpload": 404, "PreconditionFailed": 412}  # It did nothing.
_PASSING_CODES = frozenset({"InternalError", "ServiceUnavailable", "SlowDown"})


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

    def read_body(self) -> bytes:
        """Read all of the body."""

    def interrupt(self) -> None:
        """Have a call of `readinto` that waits return or fail at once; for any thread."""

    def release(self) -> None:
        """Let the connection be used again: the body was read."""

    def close(self) -> None:
        """End the connection, unless it was released."""


A = TypeVar("A", bound=Answered)


@dataclass(frozen=True, slots=True)
class _Document:
    """A whole answer; see `Answered`."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class RestClient:
    """Sends requests, with retries, renewed credentials and corrected regions.

    Args:
        runtime: Whose settings, credentials and addresses to use.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        config, network = runtime.config, runtime.network
        self._library = Library(config, network)
        connections = partial(Connections, config.concurrency, config.connect_timeout, config.read_timeout, network.tls)
        # Apart from each other, since a store may answer the one in an odd way and the other not.
        self._connections, self._document_connections = connections(), connections(takes_chunks=True)

    def send(self, request: Request) -> urllib3.BaseHTTPResponse:
        """Send a request, read the answer, and translate an error.

        Raises:
            S3Exception: It failed in every attempt.
        """
        try:
            return self.try_send(request)
        except Refused as refused:
            raise refused.translated() from None

    def change(self, request: Request) -> urllib3.BaseHTTPResponse:
        """Send a request that changes what is in the store, and wait for the answer in such a way that Ctrl-C is seen.

        It goes from a thread of the pool, so that Ctrl-C leaves no lock of a library held. Whatever interrupts the wait
        ends the request: what comes late would undo what is done after it.

        Raises:
            Refused: The store answered with an error, for good.
            S3Exception: No answer came.
        """
        try:
            return wait_for(self._runtime.pool.submit(self.try_change, request))
        except Refused:  # It is over.
            raise
        except BaseException:
            request.stop.set()
            request.stop.finish()
            raise

    def try_change(self, request: Request) -> urllib3.BaseHTTPResponse:
        """As `try_send`, with an error that says so where the store may have done what was asked.

        Raises:
            Refused: The store answered with an error, for good, and did nothing.
            S3Exception: No answer came, or one that leaves it open.
        """
        try:
            return self._send(request, is_change=True)
        except Refused as refused:
            status = refused.failure.status
            is_open = refused.is_open and status not in _DECIDING_STATUSES
            if not is_open and status not in _DOUBTFUL_STATUSES:
                raise
            raise in_doubt(refused.translated()) from None

    def try_send(self, request: Request) -> urllib3.BaseHTTPResponse:
        """Send a request, read the answer, and leave an error to the caller.

        Raises:
            Refused: The store answered with an error, for good.
            S3Exception: No answer came.
        """
        return self._send(request, is_change=False)

    def _send(self, request: Request, *, is_change: bool) -> urllib3.BaseHTTPResponse:
        def once(address: Address, keys: Credentials | None) -> urllib3.BaseHTTPResponse:
            target, headers = prepare(request, self._runtime.settings, address, keys)
            return self._library.send(request.method, address.origin, target, headers, request.body, request.stop)

        return self._in_attempts(request, once, lambda response: response.data, is_change=is_change)[0]

    def try_open(self, request: Request, check: Callable[[], None]) -> tuple[Reply, int]:
        """Send a GET and wait for the head of the answer.

        Args:
            request: The request.
            check: Called before each attempt; what it raises ends them.

        Returns:
            The answer, and how many attempts were made in all.

        Raises:
            Refused: The store answered with an error, for good.
            S3Exception: No answer came.
        """

        def once(address: Address, keys: Credentials | None) -> Reply:
            return self._get(request, address, keys, lambda reply: reply, self._connections)

        return self._in_attempts(request, once, lambda reply: reply.read_error(), check)

    def read(self, request: Request) -> bytes:
        """Send a GET and read the body of the answer, which is a document of the store's own and no object.

        Raises:
            S3Exception: It failed in every attempt.
        """

        def read_whole(reply: Reply) -> _Document:
            body = reply.read_error() if reply.status >= 300 else reply.read_body()
            return _Document(reply.status, reply.headers, body)

        def once(address: Address, keys: Credentials | None) -> _Document:
            return self._get(request, address, keys, read_whole, self._document_connections)

        try:
            return self._in_attempts(request, once, lambda document: document.body)[0].body
        except Refused as refused:
            raise refused.translated() from None

    def _get(
        self,
        request: Request,
        address: Address,
        keys: Credentials | None,
        take: Callable[[Reply], A],
        connections: Connections,
    ) -> A:
        """Send a GET once, and take the answer: by a connection of our own, or else by the library."""
        target, headers = prepare(request, self._runtime.settings, address, keys)
        if connections.is_understood and self._runtime.network.proxy(address.origin) is None:
            try:
                wire = get_request(target, address.host, headers)
                return take(connections.open(address.origin, wire))
            except (NotUnderstood, ValueError) as error:
                if isinstance(error, OSError):  # A refused certificate is a ValueError too.
                    raise
                logger.debug("an answer of %s is asked for in another way: %s", address.origin, error)
        return take(self._library.open(address.origin, target, headers))

    def _in_attempts(
        self,
        request: Request,
        once: Callable[[Address, Credentials | None], A],
        body_of: Callable[[A], bytes],
        check: Callable[[], None] = lambda: None,
        *,
        is_change: bool = False,
    ) -> tuple[A, int]:
        """Send a request until there is an answer that is no error, or no hope of one; say in how many attempts.

        An error says so where the request is a change that the store may have made in an attempt before.
        """
        runtime = self._runtime
        attempts = runtime.config.max_attempts
        corrections = 2 if request.address is None else 0  # One new region, one new set of credentials.
        is_open = False
        attempt = request.attempts_made
        if attempt:
            back_off(attempt, request.stop)
        try:
            while True:
                if request.stop.is_set():  # It may have waited for a thread until now.
                    raise S3Exception(f"{request.operation} of {request.uri} was given up")
                check()
                attempt += 1
                address, keys = request.address, None
                if address is None:
                    address, keys = runtime.address(request.bucket), runtime.keys()
                try:
                    answer, body = self._logged(request, attempt, partial(once, address, keys), body_of)
                    failure = _failure_of(request, answer, body)
                except OSError as error:
                    reason = error.strerror or str(error) or type(error).__name__
                    is_refused = CERTIFICATE_REFUSED in reason or TUNNEL_REFUSED in reason  # which no attempt mends
                    is_open |= not isinstance(error, NotConnected)
                    if (attempt >= attempts or is_refused) and not request.stop.is_set():
                        make = timeout_error if isinstance(error, TimeoutError) else connection_error
                        raise make(request.operation, request.uri, reason, attempt) from error
                else:
                    if failure is None:
                        runtime.known_buckets.add(request.bucket)
                        return answer, attempt
                    if corrections and self._correct(request, failure, keys, address):
                        corrections -= 1
                        attempt -= 1
                        continue
                    if attempt >= attempts or not _passes(failure, answer):
                        raise Refused(failure, request, is_open=is_open)
                    is_open |= failure.status in _DOUBTFUL_STATUSES
                back_off(attempt, request.stop)
        except S3Exception as error:
            if is_change and is_open:
                raise in_doubt(error) from error
            raise

    def _logged(
        self, request: Request, attempt: int, once: Callable[[], A], body_of: Callable[[A], bytes]
    ) -> tuple[A, bytes]:
        """Send a request once; with the answer comes its body if it may be an error."""
        started = time.perf_counter()
        outcome: object = "no answer"
        try:
            answer = once()
            body = body_of(answer) if answer.status >= 300 or request.result else b""
            outcome = answer.status
            return answer, body
        finally:
            if logger.isEnabledFor(logging.DEBUG):
                took = 1000 * (time.perf_counter() - started)
                words = request.operation, request.uri, attempt, outcome, took
                logger.debug("%s %s attempt %d: %s in %.1f ms", *words)

    def find_region(self, bucket: str) -> str:
        """Ask AWS where a bucket is; every answer says so, an error too.

        Args:
            bucket: The bucket's name.

        Raises:
            S3Exception: AWS cannot be reached, or names no region.
        """
        # https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadBucket.html: the header comes without permission too.
        address = Address(bucket, "us-east-1", _AWS, f"/{quote(bucket)}", host_is_bucket=False)
        try:
            answer = self.try_send(Request("HEAD", bucket, address=address))
            failure = Failure(answer.status, region=answer.headers.get(_REGION_HEADER))
        except Refused as refused:
            failure = refused.failure
        except (S3ConnectionError, S3TimeoutError) as error:
            raise type(error)(
                f"{error}; the region of s3://{bucket} is unknown and AWS does not answer: set region, AWS_REGION or, "
                "for a store that is not AWS, endpoint"
            ) from error
        if failure.region is None:
            code = "NoSuchBucket" if failure.status == 404 else ""
            raise error_for(Failure(failure.status, code), "HEAD", uri_of(bucket))
        return failure.region

    def ask_region(self, bucket: str) -> str | None:
        """Ask the store where a bucket is, after it refused a request without saying so; None when it does not tell."""
        try:
            response = self.try_send(Request("HEAD", bucket))
        except (Refused, S3Exception):
            return None
        return response.headers.get(_REGION_HEADER) or self._runtime.address(bucket).region

    def _correct(self, request: Request, failure: Failure, keys: Credentials | None, address: Address) -> bool:
        """Mend what made the store refuse, where that can be: say whether to send again at once."""
        # The answer to a HEAD has no body: of an expired token, or another region, only the status tells.
        is_unexplained = failure.status == 400 and request.method == "HEAD"
        is_elsewhere = failure.code in WRONG_REGION_CODES or failure.status in (301, 307) or is_unexplained
        # AWS names the region in answers to requests that went to the right one, too.
        if is_elsewhere and failure.region not in (None, address.region):
            return self._runtime.correct_region(request.bucket, failure.region, address.region)
        if (failure.code in OUTDATED_KEYS_CODES or is_unexplained) and keys is not None:
            return self._runtime.credentials.renew(keys)
        return False


def back_off(attempt: int, stop: Stop) -> None:
    """Wait before the next attempt: exponential, with full jitter.

    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/

    Args:
        attempt: How many were made.
        stop: Ends the wait early.
    """
    stop.wait(random.uniform(0, min(_LONGEST_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2 ** (attempt - 1))))


def _failure_of(request: Request, answer: Answered, body: bytes) -> Failure | None:
    """What an answer says went wrong; None where nothing did.

    Raises:
        ConnectionError: It ends before it says.
    """
    if answer.status >= 300:
        return parse_failure(answer.status, body, answer.headers.get(_REGION_HEADER))
    if not request.result or re.search(rf"<(?:\w+:)?{request.result}[\s/>]".encode(), body):
        return None
    if b"<Error" in body:
        failure = parse_failure(500, body)
        return replace(failure, status=_DECIDED_CODES.get(failure.code, failure.status))
    raise ConnectionError("the answer ended before it told what came of the request")


def _passes(failure: Failure, answer: Answered) -> bool:
    """Whether another attempt may help."""
    if answer.status < 300:
        return failure.code in _PASSING_CODES
    return answer.status in RETRIED_STATUSES or failure.code in RETRIED_CODES
