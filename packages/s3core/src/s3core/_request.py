"""One S3 request: what is asked for, and what that is on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ._address import Address
from ._credentials import Credentials
from ._errors import Failure, error_for, in_doubt
from ._exceptions import S3Exception
from ._settings import Settings
from ._signature import sign
from ._stop import Stop
from ._uri import uri_of

if TYPE_CHECKING:
    from ._library import Pieces


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
        stop: Ends it.
        attempts_made: How many attempts were made before, elsewhere.
        result: The root of the document that tells of success, where a status of 200 alone does not: the store may send
            that before it has done anything, and then an error or nothing.
            https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html
        address: Where to send it, without a signature; None for where its bucket is.
    """

    method: str
    bucket: str
    key: str = ""
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Pieces | None = None
    what: str = ""
    stop: Stop = field(default_factory=Stop)
    attempts_made: int = 0
    result: str = ""
    address: Address | None = None

    @property
    def operation(self) -> str:
        """The name for messages."""
        return self.what or self.method

    @property
    def uri(self) -> str:
        """The `s3://bucket/key` for messages."""
        return uri_of(self.bucket, self.key)


class Refused(Exception):
    """The store answered with an error; callers that know what to do about one catch it, the others translate it.

    Args:
        failure: The error.
        request: What was refused.
        is_open: Whether the store may have carried out an earlier attempt, of which it did not say what came: that may
            be why it refused the last one.
    """

    def __init__(self, failure: Failure, request: Request, *, is_open: bool = False) -> None:
        super().__init__(f"{failure.status} {failure.code}")
        self.failure = failure
        self.request = request
        self.is_open = is_open

    def translated(self) -> S3Exception:
        """The error to raise to the user."""
        return error_for(self.failure, self.request.operation, self.request.uri)

    def translated_change(self, error: S3Exception | None = None) -> S3Exception:
        """The same of a request that makes an object visible; it says where an earlier attempt may have done so.

        Args:
            error: What to say instead of the store's own words; None for those.
        """
        error = error or self.translated()
        return in_doubt(error) if self.is_open else error


def prepare(
    request: Request, settings: Settings, address: Address, keys: Credentials | None
) -> tuple[str, dict[str, str]]:
    """Say what a request is on the wire.

    Args:
        request: The request.
        settings: The client's.
        address: Where its bucket is.
        keys: What to sign it with; None for not at all.

    Returns:
        Path and query, and all of its headers but `Host`.
    """
    target = address.target(request.key, request.query)
    headers = headers_of(request, settings)
    if keys is not None:
        headers = sign(request.method, address.host, target, headers, keys, address.region)
    return target, headers


def headers_of(request: Request, settings: Settings) -> dict[str, str]:
    """All headers of a request but `Host` and those of its signature."""
    config = settings.config
    headers = {"User-Agent": settings.user_agent}
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
