"""Byte ranges and conditions of a request."""

from __future__ import annotations

import re
from collections.abc import Mapping

from servers.counting._errors import S3Error

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def parse_range(value: str, size: int) -> tuple[int, int] | None:
    """Read a `Range` header for an object of `size` bytes as `[start, end)`; None when it is to be ignored.

    Raises:
        S3Error: 416, when the range begins behind the end; every range of an empty object does.
    """
    match = _RANGE.fullmatch(value)
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    start = int(first) if first else max(size - int(last), 0)
    end = min(int(last) + 1, size) if first and last else size
    if start >= size or (first and last and int(last) < int(first)):
        raise S3Error(
            416, "InvalidRange", "The requested range is not satisfiable", {"Content-Range": f"bytes */{size}"}
        )
    return start, end


def check_conditions(headers: Mapping[str, str], etag: str | None, is_read: bool) -> None:
    """Check `If-Match` and `If-None-Match` against the object there is; `etag` is None when there is none.

    Raises:
        S3Error: 412 or 304.
    """
    wanted = headers.get("if-match")
    if wanted is not None and not (etag is not None and _matches(wanted, etag)):
        if etag is None and not is_read:
            raise S3Error(404, "NoSuchKey", "The specified key does not exist.")
        raise S3Error(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold")
    unwanted = headers.get("if-none-match")
    if unwanted is not None and etag is not None and _matches(unwanted, etag):
        if is_read:
            raise S3Error(304, "NotModified", headers={"ETag": etag})
        raise S3Error(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold")


def must_be_first(headers: Mapping[str, str]) -> bool:
    """Whether a write is for a key that has no object, which only the moment of the write can tell."""
    return headers.get("if-none-match") == "*"


def check_source_conditions(headers: Mapping[str, str], etag: str) -> None:
    """Check what a copy wants of its source, as `check_conditions` does; unlike a read, it is never answered by 304.

    Raises:
        S3Error: 412.
    """
    start = "x-amz-copy-source-"
    own = {name.removeprefix(start): value for name, value in headers.items() if name.startswith(start)}
    check_conditions(own, etag, is_read=False)


def _matches(header: str, etag: str) -> bool:
    return header == "*" or any(one.strip().strip('"') == etag.strip('"') for one in header.split(","))
