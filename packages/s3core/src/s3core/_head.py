"""The object that is read, and what a HEAD says about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ._errors import Failure, error_for
from ._exceptions import NoSuchKeyError, ObjectChangedError, S3Exception
from ._headers import customer_key_headers
from ._info import ObjectInfo
from ._loading import load
from ._request import Refused, Request
from ._uri import uri_of
from ._wire import content_length

if TYPE_CHECKING:
    from ._runtime import Runtime


@dataclass(frozen=True, slots=True)
class Target:
    """The object that is read.

    Args:
        bucket: The bucket.
        key: The key.
        version_id: The version; None for the latest.
    """

    bucket: str
    key: str
    version_id: str | None = None

    @property
    def uri(self) -> str:
        """The `s3://bucket/key` for messages."""
        return uri_of(self.bucket, self.key)


def head(runtime: Runtime, target: Target) -> ObjectInfo:
    """Ask for an object's size and headers.

    Raises:
        S3Exception: There is no such object, or the request failed.
    """
    return head_with_headers(runtime, target)[0]


def find(runtime: Runtime, target: Target) -> ObjectInfo | None:
    """As `head`, with None for an object that is not there.

    Raises:
        NoSuchBucketError: There is no such bucket.
        S3Exception: The request failed.
    """
    try:
        return head(runtime, target)
    except NoSuchKeyError:
        _require_bucket(runtime, target.bucket)
        return None


def _require_bucket(runtime: Runtime, bucket: str) -> None:
    """Tell a bucket that is missing from one that lacks a key, which the answer to a HEAD, without a body, does not."""
    if bucket in runtime.known_buckets:
        return
    try:
        runtime.rest.try_send(Request("HEAD", bucket))
    except Refused as refused:  # for want of a permission, too, by a bucket that is there
        if refused.failure.status == 404:
            raise error_for(Failure(404, "NoSuchBucket"), "HEAD", uri_of(bucket)) from None
    runtime.known_buckets.add(bucket)


def head_with_headers(
    runtime: Runtime, target: Target, *, asks_checksum: bool = False
) -> tuple[ObjectInfo, Mapping[str, str]]:
    """As `head`, with all headers of the answer, and the object's checksum among them where the store keeps one."""
    query = {"versionId": target.version_id} if target.version_id else {}
    headers = customer_key_headers(runtime.config)
    if asks_checksum:
        headers["x-amz-checksum-mode"] = "ENABLED"
    response = runtime.rest.send(Request("HEAD", target.bucket, target.key, query=query, headers=headers))
    size = content_length(response.headers)
    if size is None:
        said = response.headers.get("Content-Length", "")[:100]
        raise S3Exception(
            f"HEAD of {target.uri} failed: the store did not tell the object's size, but a length of {said!r}; "
            "suspect a proxy"
        )
    return info_of_headers(target, response.headers, size), response.headers


def info_of_headers(target: Target, headers: Any, size: int) -> ObjectInfo:
    """What the headers of an answer say about an object of `size` bytes.

    Args:
        target: The object.
        headers: By their names in lower case, or in any.
        size: The object's size.
    """
    modified = headers.get("last-modified")
    return ObjectInfo(
        target.key,
        size,
        headers.get("etag"),
        _moment(modified) if modified else None,
        headers.get("x-amz-storage-class"),
        headers.get("x-amz-version-id"),
    )


@lru_cache(maxsize=1024)  # Many objects are written in one second, and each is read in many ranges.
def _moment(text: str) -> datetime | None:
    load("email.utils")
    from email.utils import parsedate_to_datetime

    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def changed_error(target: Target) -> ObjectChangedError:
    """The error for an object that was replaced while it was read."""
    return ObjectChangedError(
        f"GET of {target.uri} failed: the object was replaced while it was being read, so that its parts would be of "
        "two versions; open it again, or keep objects unchanged while they are read"
    )
