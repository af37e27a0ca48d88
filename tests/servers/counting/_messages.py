"""HTTP requests and responses as values, and the two directions between them and bytes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import TypeAlias
from urllib.parse import parse_qsl, unquote_to_bytes

from servers.counting._errors import S3Error

Bytes: TypeAlias = bytes | memoryview

_KEPT_HEADERS = {
    "content-type",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "expires",
}
_REASONS = {status.value: status.phrase for status in HTTPStatus}


@dataclass(slots=True)
class Request:
    """The head of a request, addressed in path style.

    Attributes:
        method: Such as `GET`.
        path: The path as sent, still percent-encoded.
        raw_query: What follows the question mark, as sent.
        query: The same, decoded.
        headers: By lower-case name.
        bucket: Empty for a request to the service itself.
        key: The exact key; empty for a request to a bucket.
    """

    method: str
    path: str
    raw_query: str
    query: Mapping[str, str]
    headers: dict[str, str]
    bucket: str
    key: str


@dataclass(slots=True)
class Response:
    """What to answer.

    Attributes:
        status: HTTP status.
        headers: Without `Content-Length`.
        body: The body in pieces, none of which is copied.
        length: What `Content-Length` says; the length of `body` by default.
    """

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: Sequence[Bytes] = ()
    length: int | None = None

    def head(self, is_last: bool) -> bytes:
        """The status line and headers, with the empty line after them."""
        length = sum(map(len, self.body)) if self.length is None else self.length
        lines = "".join([f"{name}: {value}\r\n" for name, value in self.headers.items()])
        connection = "close" if is_last else "keep-alive"
        return (
            f"HTTP/1.1 {self.status} {_REASONS.get(self.status, 'Unknown')}\r\n"
            f"Date: {_date(int(time.time()))}\r\nConnection: {connection}\r\n"
            + (f"Content-Length: {length}\r\n" if self.status not in (204, 304) else "")
            + f"{lines}\r\n"
        ).encode("utf-8", "surrogateescape")


def parse_request(head: bytes) -> Request:
    """Read a request's head, without the empty line that ends it.

    Raises:
        S3Error: When it is not HTTP, or its path is not UTF-8.
    """
    first, *lines = head.decode("latin-1").split("\r\n")
    try:
        method, target, _ = first.split(" ")
    except ValueError:
        raise S3Error(400, "BadRequest", f"not a request line: {first!r}") from None
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    if not target.startswith("/"):  # the absolute form, sent to a proxy
        target = "/" + target.partition("://")[2].partition("/")[2]
    path, _, raw_query = target.partition("?")
    bucket, _, key = path[1:].partition("/")
    query = dict(parse_qsl(raw_query, keep_blank_values=True)) if raw_query else {}
    return Request(method, path, raw_query, query, headers, bucket, _decode(key) if "%" in key else key)


def kept_headers(request: Request) -> dict[str, str]:
    """The headers of an upload that its object is answered with."""
    kept = {
        name: value
        for name, value in request.headers.items()
        if name in _KEPT_HEADERS or name.startswith("x-amz-meta-") or name == "x-amz-storage-class"
    }
    coding = ",".join(c for c in kept.pop("content-encoding", "").split(",") if c.strip() not in ("", "aws-chunked"))
    return kept | ({"content-encoding": coding} if coding else {})


def _decode(key: str) -> str:
    try:
        return unquote_to_bytes(key).decode()
    except UnicodeDecodeError:
        raise S3Error(400, "InvalidURI", f"the key {key!r} is not UTF-8") from None


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)
